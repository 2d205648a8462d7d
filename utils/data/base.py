"""What every data set is: an index of items on disk, to draw from in training and to walk in evaluation."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, TypeVar

import numpy as np

from model.errors import UserError
from utils.data.frames import Drawn, Frames
from utils.data.images import read_image
from utils.data.types import MAX_REASON, EvalSample, Recipe, Sample, UnusableItemError, cut

logger = logging.getLogger(__name__)

Item = TypeVar("Item")

# Why an item is left out, as reports count it.
MISSING, UNLABELLED, UNUSABLE = "missing", "without annotation", "unusable"
NUM_EXAMPLES = 5  # items left out that a report names
BEYOND = (
    "annotations reach far beyond the image and are cut at its border; are they of an image of this size?"
)


class FlagError(UserError):
    """An entry of a flag that makes no sense, whatever is on disk: an unknown split, a field too many."""


class NothingUsableError(FileNotFoundError):
    """A data set is there, and none of its items can be used."""


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """How much of what an annotation file or folder lists can be used, and why the rest cannot."""

    unit: str  # what is counted: images, references, lines, entries
    num_listed: int
    num_used: int
    left_out: Mapping[str, int] = field(default_factory=dict)  # reason -> how many
    examples: tuple[str, ...] = ()  # "path: reason" of the first ones left out

    def __str__(self) -> str:
        """ "2 of 10 images; 8 missing", or "all 10 images"."""
        if not self.left_out:
            return f"all {self.num_listed} {self.unit}"
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.left_out.items())
        return f"{self.num_used} of {self.num_listed} {self.unit}; {reasons}"


class Dataset(ABC):
    """An index over one split of one data set under `dataset_dir`; nothing is decoded before it is asked for.

    Training: `sample_of(i, rng, recipe)` makes a sample of the i-th of `num_items`, and `draw` chooses i itself.
    Evaluation: `dataset[i]` is the i-th of `len(dataset)` samples. An item that cannot be used raises
    UnusableItemError; what is known to be unusable while the index is built is left out of it and kept in
    `dropped`, one "path: reason" each. Reports of evaluations state `coverage`.
    """

    name: str  # of the class; own data, which may be several, name each instance
    source: ClassVar[str]  # the --dataset word it belongs to: sem_seg, refer_seg, vqa, reason_seg
    train_split: ClassVar[str | None] = "train"  # None: for evaluation only
    val_split: ClassVar[str | None] = "val"  # None: for training only
    splits: tuple[str, ...] = ("train", "val")
    unit: ClassVar[str] = "images"  # what is dropped one by one
    is_own: ClassVar[bool] = False  # the user's own data, rather than a published data set
    classes: Sequence[str] = ()  # spoken names, where there is a fixed list of them
    # Of semantic data: whether some class is known to be absent from some image.
    knows_absent: bool = True
    # Of referring data: whether some expression means nothing in its image.
    has_no_target: bool = False

    def __init__(self, dataset_dir: str | Path, split: str) -> None:
        if split not in self.splits:
            raise FlagError(f"{self.name} has no split {split!r}; known: {', '.join(self.splits)}")
        self.dataset_dir = Path(dataset_dir)
        self.split = split
        self.dropped: list[str] = []
        self.left_out: Counter[str] = Counter()  # reason, such as MISSING -> how many
        self.notes: dict[str, dict[str, None]] = {}  # what was read otherwise than written -> where, in order

    @classmethod
    def open(cls, dataset_dir: str | Path, fields: Sequence[str], *, training: bool = False) -> Dataset:
        """Open from the fields after the name in a flag: `ade20k|val` gives ("val",)."""
        if len(fields) > 1:
            raise FlagError(
                f"{cls.name} takes one field, its split: {cls.name}|{cls.val_split or cls.train_split}; got {fields}"
            )
        default = cls.train_split if training else cls.val_split
        if default is None:
            raise FlagError(
                f"{cls.name} is for {'evaluation' if training else 'training'} only; leave it out"
            )
        return cls(dataset_dir, fields[0] if fields else default)

    @abstractmethod
    def __len__(self) -> int:
        """Number of evaluation items."""

    @property
    def num_items(self) -> int:
        """Number of training items, for `sample_of`."""
        return len(self)

    @property
    def num_images(self) -> int:
        """Pictures of the split, for `utils.data.tools.check`."""
        return len(self)

    @property
    def num_annotations(self) -> int:
        """What the annotators wrote about them: label pictures, expressions, questions, masks."""
        return len(self)

    @property
    def num_used(self) -> int:
        """How many of what `unit` names are in the index."""
        return self.num_items

    @property
    def coverage(self) -> Coverage:
        """What the index holds of all that is listed."""
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
        """A training sample of item `index`; it depends on nothing but the files, `index`, `rng` and `recipe`."""

    def draw(self, rng: np.random.Generator, recipe: Recipe) -> Sample:
        """A training sample of an item that `rng` chooses, each with the same probability."""
        index = int(rng.integers(self.num_items))
        return self.sample_of(index, rng, recipe)

    @contextmanager
    def usable(self, path: str | Path, context: str = "") -> Iterator[None]:
        """What is wrong with the files read inside the block becomes an UnusableItemError about `path`.

        Files come from anywhere, so anything may go wrong with them: whatever exception that raises is taken.
        """
        try:
            yield
        except Exception as problem:
            raise UnusableItemError(path, context + reason_of(problem, path)) from problem

    @contextmanager
    def entry(self, label: str) -> Iterator[None]:
        """What is wrong with the entry of an annotation file that is read inside leaves it out of the index."""
        try:
            yield
        except Exception as problem:
            self.drop(label, reason_of(problem, label))

    def read_picture(
        self, path: Path, size: tuple[int, int] | None = None, drawn: Drawn | None = None
    ) -> np.ndarray:
        """The picture, (height, width, 3) uint8; UnusableItemError if it is not of the annotated `size`.

        Of an image that the camera turned, the frame is returned that the annotations `drawn` fit, and noted.
        """
        with self.usable(path):
            frames = Frames.of(path) if drawn is not None else None
            if frames is None:
                image, known = read_image(path, size), ()
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
        """Leave an item out of the index, and remember why; `kind` is the reason in a word, to be counted."""
        self.dropped.append(cut(f"{path}: {reason}", 2 * MAX_REASON))
        self.left_out[kind] += 1

    def note(self, what: str, where: str | Path) -> None:
        """Remember what was read otherwise than it is written; the first of a kind is logged."""
        if what not in self.notes:
            logger.warning("%s|%s: %s: %s", self.name, self.split, where, what)
        self.notes.setdefault(what, {})[str(where)] = None

    def check_index(self, num_items: int, looked_in: str | Path) -> None:
        """Log what was dropped; an index without items is an error that says where it looked."""
        if self.dropped:
            logger.warning(
                "%s|%s: %d items dropped, %d left; first: %s",
                self.name,
                self.split,
                len(self.dropped),
                num_items,
                self.dropped[0],
            )
        if num_items == 0:
            text = f"{self.name}|{self.split}: no usable item in {looked_in}"
            if not self.dropped:
                raise FileNotFoundError(text)
            raise NothingUsableError(f"{text}; {len(self.dropped)} dropped, first: {self.dropped[0]}")


def reason_of(problem: Exception, path: str | Path) -> str:
    """What went wrong with a file, without its name; an exception that nobody expected is called by its type."""
    if isinstance(problem, UnusableItemError):
        return problem.reason if problem.path == str(path) else str(problem)
    if isinstance(problem, OSError | ValueError):
        return str(problem).removeprefix(f"{path}: ")
    if isinstance(problem, KeyError):
        return f"missing or malformed {problem}"
    return f"missing or malformed ({type(problem).__name__}: {problem})"


@contextmanager
def well_formed(path: str | Path) -> Iterator[None]:
    """Whatever an annotation file makes its reader raise becomes a UserError that names the file."""
    try:
        yield
    except (OSError, UserError):
        raise
    except Exception as problem:
        raise UserError(f"{path}: {cut(reason_of(problem, path))}") from problem


def sample_up_to(rng: np.random.Generator, items: Sequence[Item], most: int) -> list[Item]:
    """At most `most` of `items`, none twice, in random order."""
    return [items[position] for position in rng.permutation(len(items))[:most]]
