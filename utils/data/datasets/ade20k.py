"""ADE20K."""

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from utils.data.class_lists import load_class_list, load_id_table
from utils.data.files import locate
from utils.data.semantic import SemanticDataset


class Ade20k(SemanticDataset):
    """ADE20K, SceneParsing benchmark: 150 classes. PNG value 0 is unlabelled, 1..150 are classes."""

    name = "ade20k"
    classes = load_class_list("ade20k")
    id_table = load_id_table("ade20k")
    folders: ClassVar[dict[str, str]] = {"train": "training", "val": "validation"}

    def find_pairs(self) -> Iterator[tuple[Path, Path]]:
        root = locate(
            self.dataset_dir, ("ade20k", "ADEChallengeData2016", "ade20k/ADEChallengeData2016"), self.name
        )
        folder = self.folders[self.split]
        images = locate(root, (f"images/{folder}",), self.name)
        return self.pair_by_stem(images, locate(root, (f"annotations/{folder}",), self.name))
