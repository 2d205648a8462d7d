"""gRefCOCO."""

from pathlib import Path
from typing import Any, ClassVar

from utils.data.datasets.refer import ReferringDataset
from utils.data.files import read_annotations


class GRefCoco(ReferringDataset):
    """gRefCOCO: expressions with one target, several, or none (`ann_id` is [-1]); not a pickle but JSON."""

    name = "grefcoco"
    may_have_no_target = True
    splits_by: ClassVar = {"unc": ("train", "val", "testA", "testB")}

    def refs_files(self) -> tuple[str, ...]:
        return (f"grefs({self.split_by}).json",)

    def read_refs(self, path: Path) -> Any:
        return read_annotations(path)
