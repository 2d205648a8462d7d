"""The base class of all data sets: an index of items on disk; training draws from it, evaluation reads it in order.

How to add a data set: one file of about 50 lines in `utils/data/datasets/`, and a line in `utils/data/registry.py`.

1. Choose the base class by what is annotated:
   - a label image with a class for every pixel: `SemanticDataset` (semantic.py). Say where the pairs of image and
     label are (`find_pairs`) and what the label values mean (`classes`, `id_table`). Example: datasets/ade20k.py.
   - masks of some classes: `ClassMaskDataset` (class_masks.py). Read the masks of an image (`read`) and say which
     classes are known to be absent from it (`absent_classes`). Example: datasets/openimages.py.
   - expressions with masks: `ReferringDataset` (datasets/refer.py). Name the files and the splits.
   - anything else: `Dataset`, with the three methods below. Example: datasets/llava_instruct.py.
2. Set `name` (the word for the flags), `splits`, and `train_split` or `val_split` to None where it serves one
purpose; `part_names` where one name is several data sets.
3. Put the class list into `class_lists/NAME.txt` and the meaning of label values into `class_lists/NAME_ids.txt`.
4. Find folders with `locate`, which says what it looked for. Leave out what cannot be used with `self.drop(path,
   reason)` while the index is built; raise UnusableItemError (`with self.usable(path)`) where it shows later.
5. Say which files its items are read from (`files`), so that it can be sharded; most base classes do.
6. Add the class to `DATASETS` in registry.py. `python -m utils.data.tools.check --dataset "sem_seg" --sem_seg_data
   NAME` then reads it, and `python -m utils.data.tools.preview` with the same flags shows what the model will see.
7. Test it on a miniature of the official layout (`tests/utils/data/layouts.py`): the class of each pixel, what is
   known to be absent, a missing folder, a damaged file.

A class may be answered with [NEG] only where somebody has looked for it: return nothing as absent when unsure.
"""

from __future__ import annotations

import logging
import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np

from model.errors import UserError
from utils.data.coverage import UNUSABLE, Coverage, NothingUsableError, reason_of
from utils.data.frames import Drawn, Frames
from utils.data.images import read_image
from utils.data.index.cache import open_index
from utils.data.storage import ShardError, Tree
from utils.data.types import MAX_REASON, EvalSample, Recipe, Sample, UnusableItemError, cut

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Facts = TypeVar("Facts")

NUM_EXAMPLES = 5  # items left out that a report names
BEYOND = (
    "annotations reach far beyond the image and are cut at its border; are they of an image of this size?"
)


class FlagError(UserError):
    """A malformed entry of a flag, independent of what is on disk: an unknown split, one field too many."""


@dataclass(frozen=True)
class Told:
    """What a data set tells about its items, kept with an index of them."""

    dropped: list[str]
    left_out: dict[str, int]
    notes: dict[str, list[str]]
    num_left: int  # as `check_index` logs it


class Dataset(ABC):
    """An index over one split of one data set under `dataset_dir`; images are decoded only when an item is read.

    Training: `sample_of(i, rng, recipe)` makes a sample from item i < `num_items`, and `draw` chooses i at random.
    Evaluation: `dataset[i]` is sample i < `len(dataset)`. An item that cannot be used raises UnusableItemError; items
    that are found to be unusable while the index is built are not in it, but in `dropped` as "path: reason". Reports
    state `coverage`. The docstring of this module explains how to add a data set.
    """

    name: str  # of the class; own data, which may be several, name each instance
    source: ClassVar[str]  # the --dataset word it belongs to: sem_seg, refer_seg, neg_refer_seg, ...
    train_split: ClassVar[str | None] = "train"  # None: for evaluation only
    val_split: ClassVar[str | None] = "val"  # None: for training only
    splits: tuple[str, ...] = ("train", "val")
    part_names: ClassVar[
        tuple[str, ...]
    ] = ()  # of several data sets in one: the first field of their entries
    unit: ClassVar[str] = "images"  # what `dropped` and `coverage` count
    is_own: ClassVar[bool] = False  # the user's own data, not a published data set
    classes: Sequence[str] = ()  # spoken names, for data sets with a fixed class list
    knows_absent: bool = True  # semantic data: some class is known to be absent from some image
    shards: Tree | None = None  # that its files are in: a copy in another process opens them, too
    has_no_target: bool = False  # referring data: some expression has no target in its image

    def __init__(self, dataset_dir: str | Path, split: str) -> None:
        if split not in self.splits:
            raise FlagError(f"{self.name} has no split {split!r}; known: {', '.join(self.splits)}")
        self.dataset_dir = Path(dataset_dir)
        self.split = split
        self.dropped: list[str] = []
        self.left_out: Counter[str] = Counter()  # reason, such as MISSING -> number of items
        self.notes: dict[str, dict[str, None]] = {}  # how data were interpreted -> where (an ordered set)
        self._num_left = 0

    @classmethod
    def open(cls, dataset_dir: str | Path, fields: Sequence[str], *, training: bool = False) -> Dataset:
        """Open from the fields after the name in a flag: ("val",) for `ade20k|val`."""
        if len(fields) > 1:
            raise FlagError(
                f"{cls.name} takes one field, its split: {cls.name}|{cls.val_split or cls.train_split}; got {fields}"
            )
        default = cls.default_split(training=training)
        return cls(dataset_dir, fields[0] if fields else default)

    @classmethod
    def default_split(cls, *, training: bool) -> str:
        """The split for training or evaluation; FlagError if the data set is not for that purpose."""
        split = cls.train_split if training else cls.val_split
        if split is None:
            raise FlagError(
                f"{cls.name} is for {'evaluation' if training else 'training'} only; leave it out"
            )
        return split

    @abstractmethod
    def __len__(self) -> int:
        """Number of evaluation items."""

    @property
    def num_items(self) -> int:
        """Number of training items, for `sample_of`."""
        return len(self)

    @property
    def num_images(self) -> int:
        """Number of images of the split."""
        return len(self)

    @property
    def num_annotations(self) -> int:
        """Number of annotations of these images: label images, expressions, questions or masks."""
        return len(self)

    @property
    def num_used(self) -> int:
        """Number of `unit` that the index holds."""
        return self.num_items

    @property
    def coverage(self) -> Coverage:
        """How much of what is listed the index holds."""
        left_out = {reason: count for reason, count in sorted(self.left_out.items()) if count}
        return Coverage(
            unit=self.unit,
            num_listed=self.num_used + sum(left_out.values()),
            num_used=self.num_used,
            left_out=left_out,
            examples=tuple(self.dropped[:NUM_EXAMPLES]),
        )

    @abstractmethod
    def __getitem__(self, index: int) -> EvalSample:
        """The evaluation item at `index`."""

    @abstractmethod
    def sample_of(self, index: int, rng: np.random.Generator, recipe: Recipe) -> Sample:
        """A training sample from item `index`, a pure function of the files, `index`, `rng` and `recipe`."""

    def files(self) -> Iterator[Path]:
        """The files that items are read from, in their order, and perhaps some of them several times.

        Sharding packs them, with what opening the data set reads: utils/data/tools/shard.py.
        """
        raise UserError(f"{self.name} cannot be sharded: it does not say which files its items are read from")

    def draw(self, rng: np.random.Generator, recipe: Recipe) -> Sample:
        """A training sample from an item that `rng` chooses uniformly."""
        index = int(rng.integers(self.num_items))
        return self.sample_of(index, rng, recipe)

    @contextmanager
    def usable(self, path: str | Path, context: str = "") -> Iterator[None]:
        """Turn any exception inside the block into an UnusableItemError about `path`.

        Decoders and parsers raise exceptions of all types on damaged files, so all are caught.
        """
        try:
            yield
        except ShardError:
            raise
        except Exception as problem:
            raise UnusableItemError(path, context + reason_of(problem, path)) from problem

    @contextmanager
    def entry(self, label: str) -> Iterator[None]:
        """Drop an entry of an annotation file when the block that reads it raises any exception."""
        try:
            yield
        except ShardError:
            raise
        except Exception as problem:
            self.drop(label, reason_of(problem, label))

    def load_image(
        self, path: Path, size: tuple[int, int] | None = None, drawn: Drawn | None = None
    ) -> np.ndarray:
        """The image, (height, width, 3) uint8; UnusableItemError if its size is not the annotated `size`.

        An image with an EXIF orientation is returned in the frame that the annotations `drawn` fit, and noted.
        """
        with self.usable(path):
            known: tuple[tuple[int, int], ...] = ()  # sizes that the annotation file may state
            if drawn is None or (frames := Frames.of(path)) is None:
                image = read_image(path, size)
            else:
                frame, why = frames.choose(drawn, size)
                image, known = read_image(path, frame), (frames.upright, frames.stored)
                if frames.is_turned:
                    taken = "as stored" if frames.stored == frame != frames.upright else "upright"
                    self.note(f"turned by the camera, taken {taken}: {why}", path)
            if size is not None and size not in (image.shape[:2], *known):
                swapped = "; are height and width swapped?" if size == image.shape[1::-1] else ""
                raise UserError(f"is {image.shape[:2]}, annotated as {size}{swapped}")
        if drawn is not None and drawn.reaches_beyond(image.shape[:2]):
            self.note(BEYOND, path)
        return image

    def drop(self, path: str | Path, reason: str, kind: str = UNUSABLE) -> None:
        """Leave an item out of the index and record the reason; `kind` is the category that reports count."""
        self.dropped.append(cut(f"{path}: {reason}", 2 * MAX_REASON))
        self.left_out[kind] += 1

    def note(self, what: str, where: str | Path) -> None:
        """Record how something was interpreted, or what looks wrong; the first case of a kind is logged."""
        if what not in self.notes:
            logger.warning("%s|%s: %s: %s", self.name, self.split, where, what)
        self.notes.setdefault(what, {})[str(where)] = None

    def indexed(
        self,
        build: Callable[[], tuple[Sequence[Item], Facts]],
        kinds: tuple[type[Item], type[Facts]],
        files: Sequence[Path],
        *options: Any,
        folders: Sequence[Path] = (),
    ) -> tuple[Sequence[Item], Facts]:
        """What `build` makes: items and the facts about all of them; from the cache of indexes if possible.

        Args:
            build: drops and notes as well; all else that it sets is lost where the cache has the index.
            kinds: the dataclasses of an item and of the facts.
            files, folders: the annotation files, and the folders in which images are looked for.
            options: all else that `build` depends on, as plain values.
        """

        def build_and_tell() -> tuple[Sequence[Item], tuple[Facts, Told]]:
            items, facts = build()
            notes = {what: list(places) for what, places in self.notes.items()}
            return items, (facts, Told(self.dropped, dict(self.left_out), notes, self._num_left))

        item_kind, facts_kind = kinds
        # As written, for paths of items begin so, and absolute, for the working directory may be another.
        paths = [(str(path), os.path.abspath(path)) for path in (self.dataset_dir, *files, *folders)]
        key = (type(self).__name__, self.split, type(self).__module__, self.name, paths, options)
        index = open_index(key, (item_kind, tuple[facts_kind, Told]), files, build_and_tell)  # type: ignore[valid-type]
        facts, told = index.facts
        if not index.is_new:
            self._recall(told)
        return index.items, facts

    def _recall(self, told: Told) -> None:
        """Drop and note what was dropped and noted when the index was built."""
        self.dropped, self.left_out = told.dropped, Counter(told.left_out)
        for what, places in told.notes.items():
            for place in places:
                self.note(what, place)
        self._log_dropped(told.num_left)

    def _log_dropped(self, num_items: int) -> None:
        if self.dropped:
            logger.warning(
                "%s|%s: %d items dropped, %d left; first: %s",
                self.name,
                self.split,
                len(self.dropped),
                num_items,
                self.dropped[0],
            )

    def check_index(self, num_items: int, looked_in: str | Path) -> None:
        """Log what was dropped; raise FileNotFoundError for an index without items."""
        self._num_left = num_items
        self._log_dropped(num_items)
        if num_items == 0:
            text = f"{self.name}|{self.split}: no usable item in {looked_in}"
            if not self.dropped:
                raise FileNotFoundError(text)
            raise NothingUsableError(f"{text}; {len(self.dropped)} dropped, first: {self.dropped[0]}")


def sample_up_to(rng: np.random.Generator, items: Sequence[Item], most: int) -> list[Item]:
    """At most `most` of `items`, without repetition, in random order."""
    return [items[position] for position in rng.permutation(len(items))[:most]]
