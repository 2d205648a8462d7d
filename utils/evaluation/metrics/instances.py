"""COCO's average precision of instance masks, by pycocotools: https://cocodataset.org/#detection-eval."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from model.inputs import Size

# What `COCOeval.summarize` prints, in its order.
MEASURES = (
    "ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large",
    "ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class InstanceRecord:
    """The instances of one image, drawn by annotators and found by a model, of the classes that are judged in it."""

    size: Size  # (height, width)
    true_classes: np.ndarray  # (n,) int16 class ids
    true_masks: tuple[bytes, ...]  # n of COCO's compressed run lengths
    crowds: (
        np.ndarray
    )  # (n,) bool: a group drawn as one; what is found in it counts neither as right nor as wrong
    found_classes: np.ndarray  # (m,) int16 class ids
    found_masks: tuple[bytes, ...]  # m of the same
    scores: np.ndarray  # (m,) float64
    num_unjudged: int = 0  # found ones of other classes, which are left out


def instance_measures(
    records: Sequence[InstanceRecord], num_classes: int
) -> tuple[dict[str, float], np.ndarray]:
    """The numbers of `MEASURES`, and the AP (num_classes,) of each class; NaN where no instance was drawn."""
    truth = [
        _annotation(image, record, class_id, mask, iscrowd=int(crowd))
        for image, record in enumerate(records)
        for class_id, mask, crowd in zip(record.true_classes, record.true_masks, record.crowds, strict=True)
    ]
    found = [
        _annotation(image, record, class_id, mask, iscrowd=0, score=float(score))
        for image, record in enumerate(records)
        for class_id, mask, score in zip(record.found_classes, record.found_masks, record.scores, strict=True)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(_coco(truth, records, num_classes), _coco(found, records, num_classes), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    numbers = {
        name: math.nan if value < 0 else float(value)
        for name, value in zip(MEASURES, evaluation.stats, strict=True)
    }
    # (thresholds, recalls, classes, areas, numbers of detections); -1 where no instance was drawn.
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    of_class = np.where(precision < 0, np.nan, precision).mean(axis=(0, 1))
    return numbers, of_class


def _annotation(
    image: int, record: InstanceRecord, class_id: Any, counts: bytes, **entries: Any
) -> dict[str, Any]:
    code = {"size": list(record.size), "counts": counts}
    return {
        "image_id": image,
        "category_id": int(class_id),
        "segmentation": code,
        "area": float(coco_mask.area(code)),
        "bbox": coco_mask.toBbox(code).tolist(),
        **entries,
    }


def _coco(annotations: list[dict[str, Any]], records: Sequence[InstanceRecord], num_classes: int) -> COCO:
    """As `COCO(file)` and `loadRes` make it; the latter does not take an empty list."""
    coco = COCO()
    coco.dataset = {
        "images": [
            {"id": image, "height": record.size[0], "width": record.size[1]}
            for image, record in enumerate(records)
        ],
        "categories": [{"id": class_id} for class_id in range(num_classes)],
        "annotations": [{"id": number, **one} for number, one in enumerate(annotations, start=1)],
    }
    coco.createIndex()
    return coco
