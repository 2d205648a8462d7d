"""Robust referring segmentation: references with true and false sentences, as in R-RefCOCO."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence

import numpy as np

from utils.evaluation.metrics.bootstrap import Measures, whole
from utils.evaluation.metrics.common import safe_divide
from utils.evaluation.metrics.masks import Overlap


def robust_sums(
    overlaps: Sequence[Overlap], no_target: Sequence[bool], references: Sequence[Hashable]
) -> np.ndarray:
    """(8,) float64 whole numbers that are additive over images; see `robust_measures` for their order.

    Args:
        overlaps: one for each sentence.
        no_target: whether nothing in the image matches the sentence.
        references: which reference each sentence belongs to.
    """
    grouped: dict[Hashable, tuple[list[Overlap], list[Overlap]]] = defaultdict(lambda: ([], []))
    for sample, nothing, reference in zip(overlaps, no_target, references, strict=True):
        grouped[reference][nothing].append(sample)
    sums = np.zeros(8)
    for true, false in grouped.values():
        intersection, union = sum(o.intersection for o in true), sum(o.union for o in true)
        drawn = sum(o.prediction for o in false)
        if true:
            sums[:4] += whole(float(np.mean([o.iou for o in true]))), whole(1), intersection, union
            sums[6:] += whole(intersection / (union + drawn) if union + drawn else 1.0), whole(1)
        if false:
            sums[4:6] += whole(float(np.mean([o.prediction == 0 for o in false]))), whole(1)
    return sums


def robust_measures(sums: np.ndarray) -> Measures:
    """The metrics of Wu et al., "Towards Robust Referring Image Segmentation", 2024, of (..., 8) sums.

    miou: mean over references of the mean IoU of their true sentences. oiou: sum of intersections / sum of unions of
    all true sentences. mrr: mean over references of the fraction of their false sentences for which nothing is drawn.
    riou: mean over references of intersections / (unions + pixels drawn for false sentences).
    """
    iou, true, intersection, union, recognised, false, robust, counted = np.moveaxis(sums, -1, 0)
    return {
        "miou": safe_divide(iou, true),
        "oiou": safe_divide(intersection, union),
        "mrr": safe_divide(recognised, false),
        "riou": safe_divide(robust, counted),
    }
