"""What every data set is: an index of items on disk, to draw from in training and to walk in evaluation."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar, TypeVar

import numpy as np

from model.errors import UserError
from utils.data.images import read_image
from utils.data.types import EvalSample, Recipe, Sample, UnusableItemError

logger = logging.getLogger(__name__)

Item = TypeVar("Item")


class FlagError(UserError):
    """An entry of a flag that makes no sense, whatever is on disk: an unknown split, a field too many."""


class Dataset(ABC):
    """An index over one split of one data set under `dataset_dir`; nothing is decoded before it is asked for.

    Training: `sample_of(i, rng, recipe)` makes a sample of the i-th of `num_items`, and `draw` chooses i itself.
    Evaluation: `dataset[i]` is the i-th of `len(dataset)` samples. An item that cannot be used raises
    UnusableItemError; what is known to be unusable while the index is built is left out of it and kept in
    `dropped`, one "path: reason" each.
    """

    name: str  # of the class; own data, which may be several, name each instance
    source: ClassVar[str]  # the --dataset word it belongs to: sem_seg, refer_seg, vqa, reason_seg
    train_split: ClassVar[str | None] = "train"  # None: for evaluation only
    val_split: ClassVar[str | None] = "val"  # None: for training only
    splits: tuple[str, ...] = ("train", "val")

    def __init__(self, dataset_dir: str | Path, split: str) -> None:
        if split not in self.splits:
            raise FlagError(f"{self.name} has no split {split!r}; known: {', '.join(self.splits)}")
        self.dataset_dir = Path(dataset_dir)
        self.split = split
        self.dropped: list[str] = []

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
        """Pictures of the split, for `utils.data.check`."""
        return len(self)

    @property
    def num_annotations(self) -> int:
        """What the annotators wrote about them: label pictures, expressions, questions, masks."""
        return len(self)

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
        """What is wrong with the files read inside the block becomes an UnusableItemError about `path`."""
        try:
            yield
        except (OSError, ValueError) as problem:
            raise UnusableItemError(path, context + str(problem).removeprefix(f"{path}: ")) from problem

    def read_picture(self, path: Path, size: tuple[int, int] | None = None) -> np.ndarray:
        """The picture, (height, width, 3) uint8; UnusableItemError if it is not of the annotated `size`."""
        with self.usable(path):
            image = read_image(path, size)
            if size is not None and image.shape[:2] != size:
                raise UserError(f"is {image.shape[:2]}, annotated as {size}")
        return image

    def drop(self, path: str | Path, reason: str) -> None:
        """Leave an item out of the index, and remember why."""
        self.dropped.append(f"{path}: {reason}")

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
            first = f"; {len(self.dropped)} dropped, first: {self.dropped[0]}" if self.dropped else ""
            raise FileNotFoundError(f"{self.name}|{self.split}: no usable item in {looked_in}{first}")


def sample_up_to(rng: np.random.Generator, items: Sequence[Item], most: int) -> list[Item]:
    """At most `most` of `items`, none twice, in random order."""
    return [items[position] for position in rng.permutation(len(items))[:most]]
