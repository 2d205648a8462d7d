"""Ref-ZOM: expressions with no target, one, or many.

Hu et al., "Beyond One-to-One: Rethinking the Referring Image Segmentation", 2023. refer_seg/refzom/Ref_ZOM.p is a
list of references as in the REFER toolkit, with `source`: "zero" where nothing in the image matches, whatever
annotations it names. The images are those of COCO's train2014 and val2014.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from model.errors import UserError
from utils.data import storage
from utils.data.datasets.refer import Expression, ReferringDataset
from utils.data.files import locate

NOTHING = "zero"
FOLDERS = ("trainval2014", "train2014", "val2014")


class RefZom(ReferringDataset):
    """Ref-ZOM; no val split. `final` is the authors' name for the published version of the splits.

    The folder may be called ref-zom, and the file as it is downloaded or as the authors rename it. Images: beside the
    file or in refer_seg/images/mscoco/images, in train2014 and val2014 or, merged, in trainval2014.
    """

    name = "refzom"
    other_folders = ("ref-zom",)
    may_have_no_target = True
    val_split = "test"
    splits_by: ClassVar = {"final": ("train", "test")}

    def refs_files(self) -> tuple[str, ...]:
        return ("Ref_ZOM.p", "Ref-ZOM(final).p", "refs(final).p")

    def find_images(self, root: Path) -> tuple[Path, ...]:
        candidates = [
            folder / name
            for folder in (root, self.dataset_dir / "refer_seg/images/mscoco/images")
            for name in FOLDERS
        ]
        found = tuple(folder for folder in candidates if storage.is_folder(folder))
        return found or (
            locate(
                self.dataset_dir, [str(path.relative_to(self.dataset_dir)) for path in candidates], self.name
            ),
        )

    def is_absent(self, ref: Mapping[str, Any], sentence: Mapping[str, Any]) -> bool:
        return ref.get("source") == NOTHING

    def text_of(self, sentence: Mapping[str, Any]) -> str:
        text: str = sentence["sent"] if "sent" in sentence else sentence["raw"]
        return text.strip()

    def expressions_of(self, ref: Mapping[str, Any], position: int) -> list[Expression]:
        found = super().expressions_of(ref, position)
        if ref.get("source") != NOTHING and any(not expression.ann_ids for expression in found):
            raise UserError(f"no annotation, but 'source' is {ref.get('source')!r}, not {NOTHING!r}")
        return found
