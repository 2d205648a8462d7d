"""Referring expressions with negative sentences: R-RefCOCO and FP-RefCOCO, in the layout of the REFER toolkit.

refer_seg/NAME/refs(SPLIT_BY).p and instances.json are RefCOCO's, and the images are the same, but a sentence may
describe nothing in its image. R-RefCOCO then writes `exist: False` in it, FP-RefCOCO `is_false_premise: True`.
Its reference keeps the annotation that the other sentences are about. A sentence without a mark has a target.

Wu et al., "Towards Robust Referring Image Segmentation", 2024, arXiv 2209.09554; Wu et al., "See, Say, and Segment:
Teaching LMMs to Overcome False Premises" (SESAME), 2024, arXiv 2312.08366: it names the folders and files as here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from model.errors import UserError
from utils.data.datasets.refer import ReferringDataset
from utils.data.polygons import short

SPLITS = ("train", "val")
# Mark of a sentence -> its value where nothing in the image matches; the first that a sentence has decides.
MARKS = {"is_false_premise": True, "exist": False}


class NegativeReferring(ReferringDataset):
    """Base: some sentences of a reference are false, and answered with [NEG]."""

    source = "neg_refer_seg"
    may_have_no_target = True

    def __init__(self, dataset_dir: str | Path, split: str, split_by: str = "") -> None:
        super().__init__(dataset_dir, split, split_by)
        if not self.facts.has_no_target:
            names = " or ".join(repr(mark) for mark in MARKS)
            self.note(
                f"no sentence is marked as absent by {names}; is it plain RefCOCO?", self.refs_files()[0]
            )

    def is_absent(self, ref: Mapping[str, Any], sentence: Mapping[str, Any]) -> bool:
        for mark, value in MARKS.items():
            if mark in sentence:
                written = sentence[mark]
                if not isinstance(written, int) or written not in (0, 1):
                    raise UserError(f"{mark!r} is {short(written)}; it is true or false")
                return bool(written) is value
        return False


class RRefCoco(NegativeReferring):
    """R-RefCOCO: negative sentences are generated from those of other references and by exchanging words.

    The authors call the folder rrefcoco. `unc_exclude_unified` are the references that SESAME distributes.
    """

    name = "R-refcoco"
    other_folders = ("rrefcoco",)
    splits_by: ClassVar = {"unc": SPLITS, "unc_exclude_unified": SPLITS}


class RRefCocoPlus(NegativeReferring):
    """R-RefCOCO+: the same for RefCOCO+."""

    name = "R-refcoco+"
    other_folders = ("rrefcoco+",)
    splits_by: ClassVar = {"unc": SPLITS, "unc_exclude_unified": SPLITS}


class RRefCocoG(NegativeReferring):
    """R-RefCOCOg: the same for RefCOCOg."""

    name = "R-refcocog"
    other_folders = ("rrefcocog",)
    splits_by: ClassVar = {"umd": SPLITS, "umd_exclude_unified": SPLITS}


class FpRefCoco(NegativeReferring):
    """FP-RefCOCO: false premises, sentences in which one object, attribute or relation was exchanged."""

    name = "fprefcoco"
    splits_by: ClassVar = {"berkeley_exclude_unified": SPLITS}


class FpRefCocoPlus(NegativeReferring):
    """FP-RefCOCO+: the same for RefCOCO+."""

    name = "fprefcoco+"
    splits_by: ClassVar = {"berkeley_exclude_unified": SPLITS}


class FpRefCocoG(NegativeReferring):
    """FP-RefCOCOg: the same for RefCOCOg."""

    name = "fprefcocog"
    splits_by: ClassVar = {"berkeley_exclude_unified": SPLITS}
