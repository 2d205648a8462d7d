"""Objects and their parts, annotated as COCO does; the base of Pascal-Part and PACO.

Categories are called "object:part", or "object" for a whole one. "_(...)" tells two meanings of a word apart
and is not spoken: "drum_(musical_instrument):rim" is the rim of the drum.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from model.errors import UserError
from utils.data.base import MISSING, UNLABELLED
from utils.data.class_lists import ClassList
from utils.data.class_masks import ClassMaskDataset
from utils.data.files import FolderListing, locate, read_json
from utils.data.masks import annotated_size, decode_segmentation, union


@dataclass(frozen=True)
class PartItem:
    """One image, its annotations by class, and the classes that were looked for and not found."""

    path: Path
    size: tuple[int, int] | None  # (height, width) of the annotations, where the file tells
    segmentations: Mapping[int, tuple[Any, ...]]  # class index -> COCO segmentations
    absent: tuple[int, ...]


class PartDataset(ClassMaskDataset):
    """A subclass says where the annotation file and its pictures are."""

    annotation_files: ClassVar[tuple[str, ...]]
    image_folders: ClassVar[tuple[str, ...]]

    def __init__(self, dataset_dir: str | Path, split: str) -> None:
        super().__init__(dataset_dir, split)
        path = locate(self.dataset_dir, self.annotation_files, self.name)
        self.image_folder = locate(self.dataset_dir, self.image_folders, self.name)
        content = read_json(path, keys=("images", "annotations", "categories"))
        self.parts, self.class_of = read_categories(content["categories"], path)
        self.classes = ClassList(
            [category["name"] for category in content["categories"]],
            [f"{thing} {part}" if part else thing for thing, part in self.parts],
            str(path),
        )
        self.items = self._build_index(content, path)
        self.check_index(len(self.items), path)

    def __len__(self) -> int:
        return len(self.items)

    @property
    def num_annotations(self) -> int:
        return sum(len(found) for item in self.items for found in item.segmentations.values())

    def source_path(self, index: int) -> Path:
        return self.items[index].path

    def absent_classes(self, index: int) -> list[int]:
        return list(self.items[index].absent)

    def spoken_classes(self, rng: np.random.Generator) -> Sequence[str]:
        """A part is now "the part of the object", now "object part"."""
        at_length = rng.random(len(self.parts)) < 0.5
        return [
            f"the {part} of the {thing}" if part and long else name
            for name, (thing, part), long in zip(self.classes, self.parts, at_length, strict=True)
        ]

    def read(self, index: int) -> tuple[np.ndarray, Mapping[int, np.ndarray]]:
        item = self.items[index]
        image = self.read_picture(item.path, item.size)
        height, width = image.shape[:2]
        masks = {}
        for class_id, segmentations in item.segmentations.items():
            with self.usable(item.path, f"annotations of {self.classes.official[class_id]!r}: "):
                parts = (decode_segmentation(segmentation, height, width) for segmentation in segmentations)
                masks[class_id] = union(parts, height, width)
        return image, masks

    def _build_index(self, content: Mapping[str, Any], path: Path) -> list[PartItem]:
        """Annotations by image and class; what has no picture, category or segmentation is dropped."""
        segmentations: dict[Any, dict[int, list[Any]]] = defaultdict(lambda: defaultdict(list))
        for position, annotation in enumerate(content["annotations"]):
            try:
                class_id = self.class_of[annotation["category_id"]]
                segmentations[annotation["image_id"]][class_id].append(annotation["segmentation"])
            except (KeyError, TypeError) as problem:
                self.drop(f"{path}, annotation {position}", f"misses or spoils {problem}")
        pictures = FolderListing(self.image_folder)
        items = []
        for position, image in enumerate(content["images"]):
            try:
                masks, file_name, size = segmentations[image["id"]], image["file_name"], annotated_size(image)
                if not isinstance(file_name, str):
                    raise TypeError(f"'file_name': {file_name!r}")
                # Some instances of these are not annotated: neither present as they are, nor absent.
                partly = classes_in(image, "not_exhaustive_category_ids", self.class_of)
                absent = classes_in(image, "neg_category_ids", self.class_of)
            except (KeyError, TypeError, ValueError) as problem:
                self.drop(f"{path}, image {position}", f"misses or spoils {problem}")
                continue
            whole = {class_id: tuple(found) for class_id, found in masks.items() if class_id not in partly}
            if file_name not in pictures:
                self.drop(self.image_folder / file_name, f"not there, but in {path.name}", MISSING)
            elif not whole:
                self.drop(self.image_folder / file_name, "no class is annotated in full", UNLABELLED)
            else:
                absent -= partly | masks.keys()
                items.append(PartItem(self.image_folder / file_name, size, whole, tuple(sorted(absent))))
        return items


def classes_in(image: Mapping[str, Any], key: str, class_of: Mapping[Any, int]) -> set[int]:
    """LVIS's lists of categories about one image; ids of categories that are not in this file say nothing."""
    return {class_of[category] for category in image.get(key) or () if category in class_of}


def read_categories(categories: Any, path: Path) -> tuple[list[tuple[str, str]], dict[Any, int]]:
    """(object, part) of each category, the part "" for whole objects; and category id -> class index.

    Raises ValueError for a category without id or name, or with an id that another one has.
    """
    parts, class_of = [], {}
    for category in categories:
        if not isinstance(category, Mapping) or "id" not in category or not category.get("name"):
            raise UserError(f"{path}: a category has 'id' and 'name', got {category!r}")
        if category["id"] in class_of:
            raise UserError(f"{path}: two categories have the id {category['id']}")
        class_of[category["id"]] = len(parts)
        thing, _, part = category["name"].partition(":")
        parts.append((speakable(thing), speakable(part)))
    if not parts:
        raise UserError(f"{path}: no categories")
    return parts, class_of


def speakable(name: str) -> str:
    """A category's name in words: "Car_(automobile)" is "car", "laptop_computer" is "laptop computer"."""
    return " ".join(re.sub(r"_\(.*?\)", "", name).replace("_", " ").lower().split())
