"""Pascal Context with its 59 most frequent classes, and with all 459."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from model.errors import UserError
from utils.common.label_values import IGNORE
from utils.data import storage
from utils.data.class_lists import load_class_list, load_id_table, make_id_table
from utils.data.coverage import MISSING
from utils.data.datasets.pascal_voc import VocDataset
from utils.data.files import visible

ROOTS = ("VOCdevkit/VOC2010", "VOC2010", "vlpart/pascal_part/VOCdevkit/VOC2010")
LIST_FILES = ("ImageSets/SegmentationContext/val.txt", "pascalcontext_val.txt")


class Pc59(VocDataset):
    """Pascal Context, 59 classes: PNG value 0 is everything else and ignored, 1..59 are classes."""

    name = "pc59"
    classes = load_class_list("pascal_context_59")
    id_table = load_id_table("pascal_context_59")
    roots = ROOTS
    label_folders = ("SegmentationClassContext",)
    list_files = LIST_FILES


class Pc459(VocDataset):
    """Pascal Context, 459 classes: MATLAB files as published, or 16-bit images converted from them.

    In trainval/*.mat the matrix LabelMap holds 0 for unlabelled and 1..459 for classes. In
    annotations_detectron2/pc459_val/*.tif, numbers are one less, and 65535 is unlabelled.
    """

    name = "pc459"
    classes = load_class_list("pascal_context_459")
    id_table = load_id_table("pascal_context_459")
    roots = ROOTS
    label_folders = ("trainval", "annotations_detectron2/pc459_val")
    list_files = LIST_FILES
    label_suffix = ".mat"

    def listed_pairs(self, root: Path, labels: Path) -> Iterator[tuple[Path, Path]]:
        if labels.name == "trainval":
            return super().listed_pairs(root, labels)
        self.id_table = make_id_table([*((k, k) for k in range(len(self.classes))), (65535, IGNORE)])
        return self.converted_pairs(root / "JPEGImages", labels)

    def converted_pairs(self, images: Path, labels: Path) -> Iterator[tuple[Path, Path]]:
        """The folder of 16-bit images holds only the validation images, so no list of names is needed."""
        for label_path in (path for path in visible(labels) if path.suffix.lower() in (".tif", ".tiff")):
            image_path = images / f"{label_path.stem}.jpg"
            if storage.is_file(image_path):
                yield image_path, label_path
            else:
                self.drop(label_path, f"no image {image_path}", MISSING)

    def read_values(self, path: Path) -> np.ndarray:
        if path.suffix == ".mat":
            return read_label_map(path)
        values = super().read_values(path)
        if values.dtype != np.uint16:  # 65535 is ignored, so eight bits hold something else
            raise UserError(
                f"{path}: holds 8 bits a pixel, and the 459 classes take 16; convert the .mat file again"
            )
        return values


def read_label_map(path: Path) -> np.ndarray:
    """LabelMap of a MATLAB file, (height, width) uint16; UserError naming the file if there is none."""
    from scipy.io import loadmat  # imported here: takes a third of a second that only these files need

    with storage.open_file(path) as file:
        try:
            matrix = loadmat(file, variable_names=("LabelMap",)).get("LabelMap")
        except Exception as problem:  # anything: damaged files make scipy fail in a dozen ways
            raise UserError(f"{path}: not a readable MATLAB file ({problem})") from None
    if matrix is None or matrix.ndim != 2 or matrix.dtype.kind not in "uif":
        raise UserError(f"{path}: holds no matrix of numbers named LabelMap")
    if not ((matrix >= 0) & (matrix < 65536) & (matrix == np.floor(matrix))).all():
        raise UserError(f"{path}: LabelMap holds numbers that are not label values")
    return matrix.astype(np.uint16)
