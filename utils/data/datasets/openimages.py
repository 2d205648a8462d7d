"""Open Images: masks of 350 classes. This command makes the index from the official CSV files:

    python -m utils.data.tools.openimages_index build-index --dataset_dir ./dataset

OpenImageV6/train_mask.json is the index: {"categories": [names], IMAGE_ID: {name: ["d/ID_mid_box.png", ...]}};
the masks are in OpenImageV6/train-masks, the images in OpenImageV6/folder_train/xx/ID.jpg, where xx is the first two
characters of the ID. The optional train_negatives.json beside it, {IMAGE_ID: [names]}, lists the classes that people
looked for in an image and did not find; without it no class is taught as absent.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from model.errors import UserError
from utils.data import storage
from utils.data.class_lists import ClassList, normalize_name
from utils.data.class_masks import ClassMaskDataset
from utils.data.coverage import MISSING, UNLABELLED, well_formed
from utils.data.files import FolderListing, leaves_folder, locate, read_annotations
from utils.data.images import read_image, read_label
from utils.data.masks import union

ROOT = "OpenImageV6"
INDEX_FILE, NEGATIVES_FILE = "train_mask.json", "train_negatives.json"
CATEGORIES = "categories"
MAX_DISTORTION = (
    0.05  # relative difference of the aspect ratios of mask and image, which sizes in pixels round
)


@dataclass(frozen=True, slots=True)  # there are a million of these
class OpenImage:
    """One image: its mask files by class, and the classes that were looked for and not found."""

    image_id: str
    mask_files: Mapping[int, tuple[str, ...]]
    absent: tuple[int, ...]


class OpenImages(ClassMaskDataset):
    """Open Images V6, training images that have masks. Masks may be of another size than their image."""

    name = "openimage"

    def __init__(self, dataset_dir: str | Path, split: str) -> None:
        super().__init__(dataset_dir, split)
        root = locate(self.dataset_dir, (ROOT,), self.name)
        path = root / INDEX_FILE
        if not storage.is_file(path):
            raise FileNotFoundError(
                f"{self.name} needs {path}; make it from the official CSV files with "
                f"python -m utils.data.tools.openimages_index build-index --dataset_dir {dataset_dir}"
            )
        self.mask_folder = locate(root, ("train-masks",), self.name)
        self.image_folder = locate(root, ("folder_train",), self.name)
        index = read_annotations(path, keys=(CATEGORIES,))
        with well_formed(path):
            self.classes = class_list(index[CATEGORIES], path)
        negatives = read_annotations(root / NEGATIVES_FILE) if storage.is_named(root / NEGATIVES_FILE) else {}
        with well_formed(path):
            self.items = self._build_items(index, negatives, path)
        self.check_index(len(self.items), path)

    def __len__(self) -> int:
        return len(self.items)

    @property
    def num_annotations(self) -> int:
        return sum(len(files) for item in self.items for files in item.mask_files.values())

    def source_path(self, index: int) -> Path:
        return self.image_folder / image_name(self.items[index].image_id)

    def files(self) -> Iterator[Path]:
        for index, item in enumerate(self.items):
            yield self.source_path(index)
            yield from (self.mask_folder / name for names in item.mask_files.values() for name in names)

    def absent_classes(self, index: int) -> list[int]:
        return list(self.items[index].absent)

    def read(self, index: int) -> tuple[np.ndarray, Mapping[int, np.ndarray]]:
        item = self.items[index]
        stored = {
            class_id: [self.read_mask(name) for name in names] for class_id, names in item.mask_files.items()
        }
        first = next(iter(stored.values()))[0]
        path = self.source_path(index)
        with self.usable(path):
            image = read_image(path, label_size=first.shape)
        height, width = image.shape[:2]
        masks = {}
        for class_id, found in stored.items():
            with self.usable(self.mask_folder / item.mask_files[class_id][0]):
                masks[class_id] = union((resize_mask(mask, height, width) for mask in found), height, width)
        return image, masks

    def read_mask(self, name: str) -> np.ndarray:
        """A mask file, (height, width) uint8 of 0 and 1, in its own size."""
        path = self.mask_folder / name
        with self.usable(path):
            return (read_label(path) > 0).astype(np.uint8)

    def _build_items(
        self, index: Mapping[str, Any], negatives: Mapping[str, Any], path: Path
    ) -> list[OpenImage]:
        id_of = {normalize_name(name): class_id for class_id, name in enumerate(self.classes)}
        files = FolderListing(self.image_folder)
        items = []
        for image_id in sorted(index.keys() - {CATEGORIES}):
            label, file = f"{path}, image {image_id}", image_name(image_id)
            try:
                mask_files = {
                    id_of[normalize_name(name)]: mask_names(files) for name, files in index[image_id].items()
                }
                absent = {id_of[normalize_name(name)] for name in negatives.get(image_id, ())}
            except (KeyError, TypeError, AttributeError) as problem:
                self.drop(
                    label, f"{type(problem).__name__}: {problem} (a class that is not in 'categories'?)"
                )
                continue
            if not mask_files:
                self.drop(label, "no masks", UNLABELLED)
            elif outside := [name for names in mask_files.values() for name in names if leaves_folder(name)]:
                self.drop(label, f"the mask {outside[0]!r} leads out of {self.mask_folder}; copy it there")
            elif file not in files:
                self.drop(self.image_folder / file, f"not there, but in {path.name}", MISSING)
            else:
                items.append(OpenImage(image_id, mask_files, tuple(sorted(absent - mask_files.keys()))))
        return items


def image_name(image_id: str) -> str:
    """The file of an image, relative to folder_train."""
    return f"{image_id[:2]}/{image_id}.jpg"


def mask_names(files: Any) -> tuple[str, ...]:
    """The mask files of one class in an index; TypeError if it is not a list of names."""
    if not isinstance(files, list) or not files or not all(isinstance(name, str) for name in files):
        raise TypeError(f"a class needs a list of mask files, got {files!r}")
    return tuple(files)


def class_list(names: Sequence[str], source: Path) -> ClassList:
    """The categories of an index; spoken in lower case."""
    return ClassList(names, [" ".join(name.lower().split()) for name in names], str(source))


def resize_mask(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    """A mask resized to its image by nearest neighbour; UserError if it has other proportions."""
    if mask.shape == (height, width):
        return mask
    distortion = (mask.shape[0] * width) / (mask.shape[1] * height)
    if abs(distortion - 1) > MAX_DISTORTION:
        raise UserError(f"mask is {mask.shape}, its image {(height, width)}: other proportions")
    return cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST)
