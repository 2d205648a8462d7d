"""Mapillary Vistas."""

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np

from model.errors import UserError
from utils.common.label_values import IGNORE
from utils.data.class_lists import ClassList, make_id_table
from utils.data.coverage import well_formed
from utils.data.files import locate, read_annotations, what_is_there
from utils.data.semantic import SemanticDataset
from utils.data.storage import is_named

# Configuration file and label folder of each release, in the order in which they are chosen. The download of
# version 2.0 holds the labels of 1.2 as well; that of 1.2 alone names no version.
RELEASES = (
    ("config_v2.0.json", "v2.0/labels"),
    ("config_v1.2.json", "v1.2/labels"),
    ("config.json", "labels"),
)


class Mapillary(SemanticDataset):
    """Mapillary Vistas: classes are the labels that the configuration file beside the images evaluates.

    A value in a label file is an index into that list of labels.
    """

    name = "mapillary"
    folders: ClassVar[dict[str, str]] = {"train": "training", "val": "validation"}

    def find_pairs(self) -> Iterator[tuple[Path, Path]]:
        root = locate(self.dataset_dir, ("mapillary",), self.name)
        folder = locate(root, (self.folders[self.split],), self.name)
        for config_name, label_folder in RELEASES:
            if is_named(root / config_name) and is_named(folder / label_folder):
                with well_formed(root / config_name):
                    self.classes, self.id_table = read_config(root / config_name)
                return self.pair_by_stem(locate(folder, ("images",), self.name), folder / label_folder)
        wanted = " or ".join(f"{config} with {folder / labels}" for config, labels in RELEASES)
        raise FileNotFoundError(f"{self.name} needs {wanted}; {what_is_there(root / RELEASES[0][0])}")


def read_config(path: Path) -> tuple[ClassList, np.ndarray]:
    """The class list and the id table that a Mapillary configuration file describes.

    Spoken names are the `readable` ones in lower case. Labels with `evaluate` false (void and unlabelled) are
    ignored.
    """
    meanings: list[tuple[int, int]] = []
    official: list[str] = []
    spoken: list[str] = []
    for value, label in enumerate(read_annotations(path, keys=("labels",))["labels"]):
        try:
            name, readable, evaluate = label["name"], label["readable"], label["evaluate"]
        except (KeyError, TypeError) as problem:
            raise UserError(f"{path}: label {value}: missing or malformed {problem}") from None
        meanings.append((value, len(official) if evaluate else IGNORE))
        if evaluate:
            official.append(name)
            spoken.append(" ".join(readable.lower().split()))
    if not official:
        raise UserError(f"{path}: no label has 'evaluate' set, so there is no class")
    return ClassList(official, spoken, str(path)), make_id_table(meanings)
