"""COCO-Stuff."""

from collections.abc import Iterator
from pathlib import Path

from utils.data.class_lists import load_class_list, load_id_table
from utils.data.files import locate
from utils.data.semantic import SemanticDataset


class CocoStuff(SemanticDataset):
    """COCO-Stuff 164k: 80 things, 91 stuff classes. PNG values 0..181, 11 unused; 255 is unlabelled."""

    name = "cocostuff"
    classes = load_class_list("cocostuff")
    id_table = load_id_table("cocostuff")

    def find_pairs(self) -> Iterator[tuple[Path, Path]]:
        folder = f"{self.split}2017"
        candidates = (f"cocostuff/{folder}", f"coco/stuffthingmaps_trainval2017/{folder}")
        labels = locate(self.dataset_dir, candidates, self.name)
        return self.pair_by_stem(locate(self.dataset_dir, (f"coco/{folder}",), self.name), labels)
