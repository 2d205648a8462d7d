"""Semantic segmentation: an image, and a label image of the same size with a class for every pixel."""

from __future__ import annotations

import unicodedata
from abc import abstractmethod
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np

from model.errors import UserError
from model.text.sequence import complex_conversation
from utils.common.label_values import IGNORE, NOTHING, UNDEFINED
from utils.data.base import Dataset
from utils.data.class_lists import ClassList
from utils.data.coverage import MISSING, UNLABELLED
from utils.data.files import log_skipped, visible
from utils.data.frames import Frames
from utils.data.image_formats import LABEL_SUFFIXES, UNFIT_SUFFIXES, unfit_label
from utils.data.images import images_in, read_label, read_oriented
from utils.data.types import Recipe, Sample, SemanticSample, UnusableItemError

MAX_VALUES_NAMED = 10  # unknown values of a label, in messages
MAX_BINS = 4096  # of a histogram by OpenCV, which is the faster one up to about this number


class SemanticDataset(Dataset):
    """Base of the semantic data sets; a subclass finds the pairs of files and defines what label values mean."""

    source = "sem_seg"
    classes: ClassList  # like id_table a class attribute, or set by find_pairs from files on disk
    id_table: np.ndarray  # (num_values,) label value -> class index, IGNORE, NOTHING or UNDEFINED
    ignored_hint: str = ""  # what a message adds for a label with ignored pixels only
    on_label: Callable[[Path, np.ndarray], None] | None = None  # called with each label file and its values

    def __init__(self, dataset_dir: str | Path, split: str) -> None:
        super().__init__(dataset_dir, split)
        self.pairs: list[tuple[Path, Path]] = sorted(self.find_pairs())
        self.check_index(len(self.pairs), self.dataset_dir)

    @abstractmethod
    def find_pairs(self) -> Iterator[tuple[Path, Path]]:
        """Image and label path of every item of the split; FileNotFoundError when a folder is missing."""

    def absent_classes(self, label: np.ndarray) -> list[int]:
        """The classes that are known to be absent from an image, given its label (height, width) of class ids.

        These data sets are labelled exhaustively, so all classes that are not in the label; none for a label that is
        ignored as a whole.
        """
        if (label == IGNORE).all():
            return []
        return sorted(set(range(len(self.classes))) - set(values_in(label, len(self.classes))))

    def partly_labelled(self, absent: Sequence[int]) -> tuple[int, ...]:
        """The classes that may occur where the label says NOTHING: none, as labels are exhaustive."""
        return ()

    def __len__(self) -> int:
        return len(self.pairs)

    def files(self) -> Iterator[Path]:
        for pair in self.pairs:
            yield from pair

    def __getitem__(self, index: int) -> SemanticSample:
        image, label = self.read(index)
        absent = self.absent_classes(label)
        return SemanticSample(
            image=image,
            label=label,
            classes=self.classes,
            absent=tuple(absent),
            partly=self.partly_labelled(absent),
            source=str(self.pairs[index][0]),
        )

    def sample_of(self, index: int, rng: np.random.Generator, recipe: Recipe) -> Sample:
        """One image with one complex query about classes that are present and classes that are known to be absent."""
        image, label = self.read(index)
        present = values_in(label, len(self.classes))
        absent = self.absent_classes(label)
        if not present and not (absent and NOTHING in label):
            hint = self.ignored_hint if IGNORE in label else ""
            raise UnusableItemError(self.pairs[index][1], f"no pixel has a class{hint}")
        conversation, answered = complex_conversation(
            [self.classes[class_id] for class_id in present],
            [self.classes[class_id] for class_id in absent],
            rng,
            recipe.format,
            recipe.num_all_classes,
            class_list=self.classes,
            hard_negatives=[self.classes[class_id] for class_id in self.likely_absent(absent, rng, recipe)],
            hard_negative_fraction=recipe.likely_negatives,
        )
        class_ids = [self.classes.spoken.index(name) for name in answered]
        # Comparing in the label's type is nine times as fast as in int64.
        values = np.array(class_ids, dtype=label.dtype)[:, None, None]
        masks = (label == values).view(np.uint8)  # (num_seg, height, width)
        return Sample(
            image=image, conversations=(conversation,), masks=masks, source=str(self.pairs[index][0])
        )

    def likely_absent(self, absent: Sequence[int], rng: np.random.Generator, recipe: Recipe) -> list[int]:
        """Hard negatives: the absent classes that another, random image shows; none if the recipe asks for none.

        Most classes of a long list are rare. If absent classes were drawn uniformly, frequent classes would hardly
        ever be absent, and the model would learn to tell frequent from rare classes instead of present from absent
        ones.
        """
        if not recipe.likely_negatives:
            return []
        label_path = self.pairs[int(rng.integers(len(self)))][1]
        with self.usable(label_path):
            label = self.class_ids(self.stored_values(label_path), label_path)
        return sorted({*absent}.intersection(values_in(label, len(self.classes))))

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Image (height, width, 3) uint8 and class ids (height, width) uint16.

        Raises UnusableItemError when they differ in size.
        """
        image_path, label_path = self.pairs[index]
        with self.usable(label_path):
            values = self.stored_values(label_path)
        with self.usable(image_path):
            image, taken = read_oriented(image_path, label_size=values.shape)
        if values.shape != image.shape[:2]:
            raise UnusableItemError(label_path, f"label is {values.shape}, its image {image.shape[:2]}")
        if taken:
            frames = Frames.of(image_path)
            is_decided = frames is not None and frames.stored != frames.upright
            why = "only that has the label's size" if is_decided else "the label's size fits both"
            self.note(f"turned by the camera, taken {taken}: {why}", image_path)
        return image, self.class_ids(values, label_path)

    def stored_values(self, path: Path) -> np.ndarray:
        """The numbers of a label file; calls `on_label` with them if it is set."""
        values = self.read_values(path)
        if self.on_label is not None:
            self.on_label(path, values)
        return values

    def read_values(self, path: Path) -> np.ndarray:
        """The numbers of a label file as they are stored, (height, width) uint8 or uint16."""
        return read_label(path)

    def class_ids(self, values: np.ndarray, path: Path) -> np.ndarray:
        """Label values to class ids, both (height, width); UnusableItemError for a value without a meaning."""
        found = values_in(values)
        unknown = [int(v) for v in found if v >= len(self.id_table) or self.id_table[v] == UNDEFINED]
        if unknown:
            more = f" and {len(unknown) - MAX_VALUES_NAMED} more" if unknown[MAX_VALUES_NAMED:] else ""
            values_named = f"{unknown[:MAX_VALUES_NAMED]}{more}"
            raise UnusableItemError(path, f"label values {values_named} are not in {self.name}'s class list")
        return np.take(self.id_table.astype(np.uint16), values)

    def pair_by_stem(self, image_dir: Path, label_dir: Path) -> Iterator[tuple[Path, Path]]:
        """Pairs of image and label with the same stem in two folders; files without a partner are dropped.

        Raises UserError when two images, or two labels, have the same stem.
        """
        images, others = images_in(image_dir)
        labels, unfit = label_files(label_dir)
        for path in images:  # a.jpg.png, as some tools call the label of a.jpg
            whole = unicodedata.normalize("NFC", path.name)
            if whole in labels and stem_of(path) not in labels:
                labels[stem_of(path)] = labels.pop(whole)
                self.note("labels named like the image with its suffix; read as meant", label_dir)
        names = sorted(unicodedata.normalize("NFC", path.name) for path in visible(label_dir))
        image_of: dict[str, Path] = {}
        for path in images:
            stem = stem_of(path)
            if stem in image_of and stem in labels:
                raise UserError(
                    f"{image_of[stem]} and {path} both belong to the label {labels[stem]}; remove or rename one"
                )
            image_of[stem] = path
            if stem in labels:
                yield path, labels[stem]
            elif stem in unfit:
                self.drop(*unfit[stem])
            else:
                self.drop(path, f"no label {stem}.png in {label_dir}{near_miss(stem, names)}", UNLABELLED)
        unread = {stem_of(path): (path, reason) for path, reason in others}
        alone = labels.keys() - image_of.keys()
        for stem in sorted(alone):
            self.drop(*unread.get(stem, (labels[stem], f"no image {stem}.* in {image_dir}", MISSING)))
        log_skipped(image_dir, [path for path, _ in others if stem_of(path) not in alone])
        extra = [path for stem, (path, _) in unfit.items() if stem in labels or stem not in image_of]
        log_skipped(label_dir, extra, "labels")


def stem_of(path: Path) -> str:
    """The stem that pairs an image with its label, in one Unicode form: macOS writes "é" as two characters."""
    return unicodedata.normalize("NFC", path.stem)


def near_miss(stem: str, names: Sequence[str]) -> str:
    """For messages: the first of the sorted names that begins with `stem`, as a_mask.png does with a."""
    for name in names[bisect_left(names, stem) :]:
        if not name.startswith(stem):
            return ""
        if not name[len(stem)].isalnum():
            return f"; {name} is there, but a label is a {'/'.join(LABEL_SUFFIXES)} named like its image"
    return ""


def label_files(folder: Path) -> tuple[dict[str, Path], dict[str, tuple[Path, str]]]:
    """Stem -> file of the label images in a folder; stem -> file and reason of those that cannot hold class numbers.

    Raises UserError when two label images have one stem.
    """
    labels: dict[str, Path] = {}
    unfit: dict[str, tuple[Path, str]] = {}
    others = []
    for path in visible(folder):
        suffix = path.suffix.lower()
        stem = stem_of(path)
        if suffix in LABEL_SUFFIXES and stem in labels:
            raise UserError(f"{labels[stem]} and {path} are labels of one image; remove or rename one")
        if suffix in LABEL_SUFFIXES:
            labels[stem] = path
        elif suffix in UNFIT_SUFFIXES:
            unfit[stem] = path, unfit_label(path.suffix, UNFIT_SUFFIXES[suffix])
        else:
            others.append(path)
    log_skipped(folder, others)
    return labels, unfit


def values_in(labels: np.ndarray, below: int | None = None) -> list[int]:
    """The distinct values of a uint8 or uint16 array in ascending order; with `below`, only smaller ones.

    From a histogram, which takes a tenth of the time of np.unique.
    """
    num_bins = below or np.iinfo(labels.dtype).max + 1
    if num_bins <= MAX_BINS:
        counts = cv2.calcHist([labels], [0], None, [num_bins], [0, num_bins]).ravel()
    else:
        counts = np.bincount(labels.ravel())[:below]
    return np.flatnonzero(counts).tolist()
