"""Pascal VOC, and the base of the data sets whose files are in a VOCdevkit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from model.files import split_lines
from utils.data import storage
from utils.data.class_lists import load_class_list, load_id_table
from utils.data.coverage import MISSING, UNLABELLED
from utils.data.files import FolderListing, locate
from utils.data.semantic import SemanticDataset


class VocDataset(SemanticDataset):
    """Base of the VOCdevkit data sets, which are for evaluation only."""

    splits = ("val",)
    train_split = None
    roots: ClassVar[tuple[str, ...]]  # the year's folder
    label_folders: ClassVar[tuple[str, ...]]  # below a root
    list_files: ClassVar[tuple[str, ...]]  # below a root: names of the split's images, one per line
    label_suffix: ClassVar[str] = ".png"

    def find_pairs(self) -> Iterator[tuple[Path, Path]]:
        candidates = {f"{root}/{folder}": root for folder in self.label_folders for root in self.roots}
        labels = locate(self.dataset_dir, tuple(candidates), self.name)
        root = candidates[labels.relative_to(self.dataset_dir).as_posix()]
        return self.listed_pairs(self.dataset_dir / root, labels)

    def listed_pairs(self, root: Path, labels: Path) -> Iterator[tuple[Path, Path]]:
        """The pairs in the split's list; missing files are dropped."""
        names = locate(root, self.list_files, self.name)
        images = locate(root, ("JPEGImages",), self.name)
        image_files, label_files = FolderListing(images), FolderListing(labels)
        for name in filter(None, map(str.strip, split_lines(storage.read_text(names)))):
            if f"{name}.jpg" not in image_files:
                self.drop(images / f"{name}.jpg", f"not there, but in {names}", MISSING)
            elif f"{name}{self.label_suffix}" not in label_files:
                self.drop(
                    images / f"{name}.jpg", f"no label {name}{self.label_suffix} in {labels}", UNLABELLED
                )
            else:
                yield images / f"{name}.jpg", labels / f"{name}{self.label_suffix}"


class Pas20(VocDataset):
    """Pascal VOC 2012: 20 things. Background (0) and the borders of objects (255) are ignored."""

    name = "pas20"
    classes = load_class_list("pascal_voc")
    id_table = load_id_table("pascal_voc")
    roots = ("VOCdevkit/VOC2012", "VOC2012")
    label_folders = ("SegmentationClass",)
    list_files = ("ImageSets/Segmentation/val.txt",)
