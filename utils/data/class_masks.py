"""Data sets with masks of some classes per image: masks may overlap; some classes are neither present nor absent."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from model.errors import UserError
from model.text.sequence import complex_conversation
from utils.data.base import Dataset
from utils.data.class_lists import ClassList
from utils.data.types import EvalSample, Recipe, Sample, UnusableItemError


class ClassMaskDataset(Dataset):
    """Base of data sets that are not labelled exhaustively; a subclass reads masks and knows what is absent.

    For training only unless a subclass overrides `__getitem__`: evaluation needs a class for every pixel.
    """

    source = "sem_seg"
    splits = ("train",)
    val_split: ClassVar[str | None] = None
    classes: ClassList  # spoken names, in the order of the annotation file

    @abstractmethod
    def read(self, index: int) -> tuple[np.ndarray, Mapping[int, np.ndarray]]:
        """Image (height, width, 3) uint8, and class index -> mask (height, width) uint8 of 0 and 1.

        A class of which only some instances are annotated must be left out: its mask would be wrong.
        """

    @abstractmethod
    def absent_classes(self, index: int) -> list[int]:
        """The classes that annotators looked for in an image and did not find; no others are known to be absent."""

    @abstractmethod
    def source_path(self, index: int) -> Path:
        """The image file, for messages."""

    def files(self) -> Iterator[Path]:
        return map(self.source_path, range(len(self)))

    def __getitem__(self, index: int) -> EvalSample:
        raise UserError(f"{self.name} is for training only: it does not label every pixel")

    def spoken_classes(self, rng: np.random.Generator) -> Sequence[str]:
        """The name of each class in one sample."""
        return self.classes

    def likely_absent(self, absent: Sequence[int], rng: np.random.Generator, recipe: Recipe) -> list[int]:
        """Hard negatives: the absent classes that another, random image shows; none if the recipe asks for none."""
        if not recipe.likely_negatives:
            return []
        _, masks = self.read(int(rng.integers(len(self))))
        return sorted(masks.keys() & set(absent))

    def sample_of(self, index: int, rng: np.random.Generator, recipe: Recipe) -> Sample:
        """One image with one complex query about classes that have a mask and classes that are known to be absent."""
        image, masks = self.read(index)
        present = sorted(class_id for class_id, mask in masks.items() if mask.any())
        absent = sorted(set(self.absent_classes(index)) - masks.keys())
        if not present and not absent:
            raise UnusableItemError(self.source_path(index), "no class has a mask")
        names = self.spoken_classes(rng)
        conversation, answered = complex_conversation(
            [names[class_id] for class_id in present],
            [names[class_id] for class_id in absent],
            rng,
            recipe.format,
            recipe.num_all_classes,
            class_list=names,
            hard_negatives=[names[class_id] for class_id in self.likely_absent(absent, rng, recipe)],
            hard_negative_fraction=recipe.likely_negatives,
        )
        class_of = {names[class_id]: class_id for class_id in present}
        chosen = [masks[class_of[name]] for name in answered]
        return Sample(
            image=image,
            conversations=(conversation,),
            masks=np.stack(chosen) if chosen else np.zeros((0, *image.shape[:2]), dtype=np.uint8),
            source=str(self.source_path(index)),
        )
