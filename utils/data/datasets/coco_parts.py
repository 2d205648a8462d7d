"""Objects and their parts in COCO's format; the base of Pascal-Part and PACO.

Categories are named "object:part", or "object" for a whole object. "_(...)" separates two meanings of a word and is
not spoken: "drum_(musical_instrument):rim" is the rim of the drum.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from model.errors import UserError
from utils.data.class_lists import ClassList
from utils.data.class_masks import ClassMaskDataset
from utils.data.coco_file import classes_in, id_of, speakable, spoken_names
from utils.data.coverage import MISSING, UNLABELLED, well_formed
from utils.data.files import FolderListing, locate, read_annotations
from utils.data.frames import Drawn
from utils.data.masks import annotated_size, decode_segmentation, union
from utils.data.polygons import short


@dataclass(frozen=True)
class PartItem:
    """One image, its annotations by class, and the classes that were looked for and not found."""

    path: Path
    size: tuple[int, int] | None  # (height, width) of the annotations, where the file states it
    segmentations: Mapping[int, tuple[Any, ...]]  # class index -> COCO segmentations
    absent: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class PartFacts:
    """What is known of all images together."""

    names: tuple[str, ...]  # of the classes, as written
    parts: tuple[
        tuple[str, str], ...
    ]  # object and part of each class, spoken; the part "" for a whole object
    num_annotations: int


class PartDataset(ClassMaskDataset):
    """Base of the data sets with parts; a subclass names the annotation file and the image folder."""

    annotation_files: ClassVar[tuple[str, ...]]
    image_folders: ClassVar[tuple[str, ...]]

    def __init__(self, dataset_dir: str | Path, split: str) -> None:
        super().__init__(dataset_dir, split)
        path = locate(self.dataset_dir, self.annotation_files, self.name)
        self.image_folder = locate(self.dataset_dir, self.image_folders, self.name)
        self.items, facts = self.indexed(
            lambda: self._read_index(path), (PartItem, PartFacts), [path], folders=[self.image_folder]
        )
        self.parts = facts.parts
        self.classes = class_list(facts.names, facts.parts, path)
        self._num_annotations = facts.num_annotations

    def __len__(self) -> int:
        return len(self.items)

    @property
    def num_annotations(self) -> int:
        return self._num_annotations

    def source_path(self, index: int) -> Path:
        return self.items[index].path

    def absent_classes(self, index: int) -> list[int]:
        return list(self.items[index].absent)

    def spoken_classes(self, rng: np.random.Generator) -> Sequence[str]:
        """A part is called "the part of the object" or "object part", at random."""
        at_length = rng.random(len(self.parts)) < 0.5
        return [
            f"the {part} of the {thing}" if part and long else name
            for name, (thing, part), long in zip(self.classes, self.parts, at_length, strict=True)
        ]

    def read(self, index: int) -> tuple[np.ndarray, Mapping[int, np.ndarray]]:
        item = self.items[index]
        drawn = Drawn.of(drawing for found in item.segmentations.values() for drawing in found)
        image = self.load_image(item.path, item.size, drawn)
        height, width = image.shape[:2]
        masks = {}
        for class_id, segmentations in item.segmentations.items():
            with self.usable(item.path, f"annotations of {self.classes.official[class_id]!r}: "):
                parts = (decode_segmentation(segmentation, height, width) for segmentation in segmentations)
                masks[class_id] = union(parts, height, width)
        return image, masks

    def _read_index(self, path: Path) -> tuple[list[PartItem], PartFacts]:
        """The images of the annotation file, and what is known of all of them."""
        with well_formed(path):
            content = read_annotations(path, keys=("images", "annotations", "categories"))
            parts, class_of = read_categories(content["categories"], path)
            names = [category["name"] for category in content["categories"]]
            class_list(names, parts, path)  # raises for names that cannot be asked for
            items = self._build_index(content, path, class_of)
        self.check_index(len(items), path)
        num_annotations = sum(len(found) for item in items for found in item.segmentations.values())
        return items, PartFacts(names=tuple(names), parts=tuple(parts), num_annotations=num_annotations)

    def _build_index(
        self, content: Mapping[str, Any], path: Path, class_of: Mapping[Any, int]
    ) -> list[PartItem]:
        """Annotations by image and class; entries without image file, category or segmentation are dropped."""
        segmentations: dict[Any, dict[int, list[Any]]] = defaultdict(lambda: defaultdict(list))
        for position, annotation in enumerate(content["annotations"]):
            with self.entry(f"{path}, annotation {position}"):
                class_id = class_of[id_of(annotation["category_id"])]
                segmentations[id_of(annotation["image_id"])][class_id].append(annotation["segmentation"])
        files = FolderListing(self.image_folder)
        items = []
        for position, image in enumerate(content["images"]):
            with self.entry(f"{path}, image {position}"):
                masks, file_name = segmentations[id_of(image["id"])], image["file_name"]
                if not isinstance(file_name, str):
                    raise UserError(f"'file_name' is {short(file_name)}; it is a text")
                size = annotated_size(image)
                # Some instances of these are not annotated, so they can be asked for neither as present nor as
                # absent.
                partly = classes_in(image, "not_exhaustive_category_ids", class_of)
                absent = classes_in(image, "neg_category_ids", class_of)
                whole = {
                    class_id: tuple(drawn) for class_id, drawn in masks.items() if class_id not in partly
                }
                if file_name not in files:
                    self.drop(self.image_folder / file_name, f"not there, but in {path.name}", MISSING)
                elif not whole:
                    self.drop(self.image_folder / file_name, "no class is annotated in full", UNLABELLED)
                else:
                    absent -= partly | masks.keys()
                    items.append(PartItem(self.image_folder / file_name, size, whole, tuple(sorted(absent))))
        return items


def class_list(names: Sequence[str], parts: Sequence[tuple[str, str]], path: Path) -> ClassList:
    """The classes of these official names. UserError where two are called the same."""
    return ClassList(names, [f"{thing} {part}" if part else thing for thing, part in parts], str(path))


def read_categories(categories: Any, path: Path) -> tuple[list[tuple[str, str]], dict[Any, int]]:
    """(object, part) of each category, the part "" for whole objects; and category id -> class index.

    Raises UserError for a category without id or name, or with an id that another one has.
    """
    names: list[str] = []
    class_of: dict[Any, int] = {}
    for category in categories:
        if not isinstance(category, Mapping) or "id" not in category or not category.get("name"):
            raise UserError(f"{path}: a category has 'id' and 'name', got {short(category)}")
        category_id = id_of(category["id"])
        if category_id in class_of:
            raise UserError(f"{path}: two categories have the id {category_id}")
        class_of[category_id] = len(names)
        names.append(category["name"])
    if not names:
        raise UserError(f"{path}: no categories")
    things, _, parts = zip(*(name.partition(":") for name in names), strict=True)
    thing_of = dict(zip(things, spoken_names(list(things)), strict=True))
    return [(thing_of[thing], speakable(part)) for thing, part in zip(things, parts, strict=True)], class_of
