"""Own data as COCO instances: what annotation tools export.

PATH is one json file, or a folder with train.json and val.json: {"images": [{id, file_name, height, width}],
"annotations": [{id, image_id, category_id, segmentation}], "categories": [{id, name}]}. A segmentation is a list of
polygons or a run-length code; categories are the classes. The format: https://cocodataset.org/#format-data.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from model.errors import UserError
from utils.data.base import MISSING
from utils.data.class_lists import ClassList
from utils.data.class_masks import ClassMaskDataset
from utils.data.coco_parts import classes_in, speakable
from utils.data.files import FolderListing, read_json
from utils.data.masks import annotated_size
from utils.data.own import OwnFlag, decode_own_mask, find_pictures, find_split_file
from utils.data.types import IGNORE, NOTHING, SemanticSample

ID = int | str
LISTS: dict[str, dict[str, Any]] = {  # of the file -> what each entry of it must have
    "categories": {"id": ID, "name": str},
    "images": {"id": ID, "file_name": str},
    "annotations": {"image_id": ID, "category_id": ID},
}


@dataclass(frozen=True, kw_only=True)
class CocoItem:
    """One image and what is drawn on it; classes are indices into the class list."""

    path: Path
    size: tuple[int, int] | None  # (height, width) of the annotations, where the file tells
    objects: tuple[tuple[int, Any], ...]  # class, segmentation
    absent: tuple[int, ...]  # classes known not to be in the image
    partly: frozenset[int]  # classes of which not every object is drawn: not asked

    @property
    def is_askable(self) -> bool:
        """Whether at least one class is known to be present or absent."""
        return bool(self.absent) or any(class_id not in self.partly for class_id, _ in self.objects)


class OwnCoco(ClassMaskDataset):
    """`own_coco:PATH|SPLIT|exhaustive=false|images=FOLDER`: complex queries about the categories of a COCO file.

    A class is the union of its annotations in an image, crowds included. What is not annotated is taught as absent
    only if `exhaustive=true`, or if the image says so, as in LVIS: `neg_category_ids` are absent, of
    `not_exhaustive_category_ids` some objects are not drawn, so they are not asked.
    """

    name = "own_coco"
    source = "own_coco"
    val_split = "val"

    def __init__(self, dataset_dir: str | Path, flag: OwnFlag, *, training: bool = False) -> None:
        self.name = flag.name
        self.exhaustive = flag.is_exhaustive(default=False)
        default = self.train_split if training else self.val_split
        self.file, split = find_split_file(flag, dataset_dir, default, ".json")
        self.splits = (split,)
        super().__init__(dataset_dir, split)
        content = read_coco(self.file)
        names = [category["name"] for category in content["categories"]]
        self.classes = ClassList(names, [speakable(name) for name in names], f"{self.file}, categories")
        pictures = find_pictures(
            flag, self.file, [image["file_name"] for image in content["images"]], dataset_dir
        )
        items = self._build_index(content, pictures)
        self.check_index(len(items), self.file)
        self.items = [item for item in items if item.is_askable] if training else items
        self.knows_absent = any(item.absent for item in self.items)
        if not self.items:
            raise UserError(
                f"{self.name}: no image of {self.file} has a class that is known to be present or absent; annotate "
                "some, or say exhaustive=true"
            )

    @classmethod
    def open(cls, dataset_dir: str | Path, fields: Sequence[str], *, training: bool = False) -> OwnCoco:
        """From the path and the fields after it: ("./boats.json", "exhaustive=true")."""
        return cls(dataset_dir, OwnFlag.parse(cls.name, fields, ("exhaustive", "images")), training=training)

    def __len__(self) -> int:
        return len(self.items)

    @property
    def num_annotations(self) -> int:
        return sum(len(item.objects) for item in self.items)

    def __getitem__(self, index: int) -> SemanticSample:
        """Big objects are drawn first, so that a small one on top of it shows; where nothing is drawn, masks of
        classes are judged that are drawn completely or known to be absent, and no others.
        """
        item = self.items[index]
        image = self.read_picture(item.path, item.size)
        partly = item.partly if self.exhaustive else set(range(len(self.classes))) - set(item.absent)
        is_known = self.exhaustive or item.absent
        label = np.full(image.shape[:2], NOTHING if is_known else IGNORE, dtype=np.uint16)
        for class_id, mask in sorted(self.objects(item, image), key=lambda drawn: -int(drawn[1].sum())):
            label[mask.astype(bool)] = class_id
        return SemanticSample(
            image=image,
            label=label,
            classes=self.classes,
            absent=item.absent,
            partly=tuple(sorted(partly)),
            source=str(item.path),
        )

    def read(self, index: int) -> tuple[np.ndarray, Mapping[int, np.ndarray]]:
        item = self.items[index]
        image = self.read_picture(item.path, item.size)
        masks: dict[int, np.ndarray] = {}
        for class_id, mask in self.objects(item, image):
            if class_id not in item.partly:
                masks[class_id] = masks[class_id] | mask if class_id in masks else mask
        return image, masks

    def absent_classes(self, index: int) -> list[int]:
        return list(self.items[index].absent)

    def source_path(self, index: int) -> Path:
        return self.items[index].path

    def objects(self, item: CocoItem, image: np.ndarray) -> list[tuple[int, np.ndarray]]:
        """Class and (height, width) uint8 mask of every object; UnusableItemError for a mask that is none."""
        drawn = []
        for class_id, segmentation in item.objects:
            with self.usable(item.path, f"a mask of {self.classes.official[class_id]!r} in {self.file}: "):
                drawn.append((class_id, decode_own_mask(segmentation, *image.shape[:2])))
        return drawn

    def _build_index(self, content: Mapping[str, Any], pictures: FolderListing) -> list[CocoItem]:
        """A CocoItem for each image with a picture on disk and a segmentation for each of its annotations."""
        class_of = {category["id"]: index for index, category in enumerate(content["categories"])}
        objects: dict[Any, list[tuple[int, Any]]] = defaultdict(list)
        for annotation in content["annotations"]:
            drawn = (class_of[annotation["category_id"]], annotation.get("segmentation"))
            objects[annotation["image_id"]].append(drawn)
        items = []
        for image in content["images"]:
            path = pictures.folder / image["file_name"]
            if image["file_name"] not in pictures:
                self.drop(path, f"is not there, but in {self.file}", MISSING)
            elif not all(segmentation for _, segmentation in objects[image["id"]]):
                self.drop(
                    path,
                    f"an annotation of it in {self.file} has no segmentation; draw a mask, a box is none",
                )
            else:
                items.append(self._item(path, image, tuple(objects[image["id"]]), class_of))
        return items

    def _item(
        self,
        path: Path,
        image: Mapping[str, Any],
        objects: tuple[tuple[int, Any], ...],
        class_of: Mapping[Any, int],
    ) -> CocoItem:
        partly = classes_in(image, "not_exhaustive_category_ids", class_of)
        absent = (
            set(class_of.values()) if self.exhaustive else classes_in(image, "neg_category_ids", class_of)
        )
        absent -= partly | {class_id for class_id, _ in objects}
        return CocoItem(
            path=path,
            size=annotated_size(image),
            objects=objects,
            absent=tuple(sorted(absent)),
            partly=frozenset(partly),
        )


def read_coco(path: Path) -> dict[str, Any]:
    """A COCO instances file whose entries have what we need and refer to each other.

    Raises ValueError with the file, the entry and what is wrong with it.
    """
    content = read_json(path, keys=tuple(LISTS))
    for name, keys in LISTS.items():
        if not isinstance(content[name], list):
            raise UserError(f"{path}: {name!r} must be a list, got {type(content[name]).__name__}")
        for position, entry in enumerate(content[name]):
            _check_entry(entry, keys, f"{path}: {name}[{position}]")
    if not content["categories"]:
        raise UserError(f"{path}: no categories; they are the classes")
    image_ids = _unique_ids(content["images"], f"{path}: images")
    category_ids = _unique_ids(content["categories"], f"{path}: categories")
    for position, annotation in enumerate(content["annotations"]):
        for key, ids in (("image_id", image_ids), ("category_id", category_ids)):
            if annotation[key] not in ids:
                raise UserError(
                    f"{path}: annotations[{position}] has {key} {annotation[key]!r}, which no entry of "
                    f"{'images' if key == 'image_id' else 'categories'} has; add it, or remove the annotation"
                )
    return content


def _check_entry(entry: Any, keys: Mapping[str, Any], where: str) -> None:
    for key, kind in keys.items():
        if not isinstance(entry, dict) or key not in entry:
            raise UserError(f"{where} has no {key!r}; in COCO instances each of them has {', '.join(keys)}")
        if not isinstance(entry[key], kind):
            raise UserError(
                f"{where}: {key!r} is {entry[key]!r}, not of the kind that COCO instances have there"
            )
    for key in ("height", "width"):
        if key in entry and not isinstance(entry[key], int):
            raise UserError(f"{where}: {key!r} is {entry[key]!r}; it is a number of pixels, or left out")


def _unique_ids(entries: Sequence[Mapping[str, Any]], what: str) -> set[Any]:
    ids = set()
    for entry in entries:
        if entry["id"] in ids:
            raise UserError(f"{what}: id {entry['id']!r} comes twice; ids tell entries apart")
        ids.add(entry["id"])
    return ids
