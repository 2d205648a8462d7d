"""Binary masks: overlaps, and the metrics of referring, generalized referring and reasoning segmentation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from utils.evaluation.metrics.bootstrap import Measures, whole
from utils.evaluation.metrics.common import known_mean, ratio, safe_divide

NO_TARGET_PIXELS = 50  # gRefCOCO's second rule: a union of fewer pixels counts as "no target"
PRECISIONS = (0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """Pixel counts of one predicted mask and its target, ignored pixels left out."""

    intersection: int
    prediction: int
    target: int

    @property
    def union(self) -> int:
        return self.prediction + self.target - self.intersection

    @property
    def iou(self) -> float:
        """Intersection over union; 1 when both masks are empty."""
        return self.intersection / self.union if self.union else 1.0


def overlap(prediction: np.ndarray, target: np.ndarray, ignore: np.ndarray | None = None) -> Overlap:
    """Count one pair of masks.

    Args:
        prediction, target: (height, width), bool, or numbers that are non-zero in the mask.
        ignore: (height, width) bool, True where pixels are not judged.
    """
    prediction, target = prediction.astype(bool), target.astype(bool)
    if prediction.shape != target.shape:
        raise ValueError(f"predicted mask is {prediction.shape} but the target is {target.shape}")
    if ignore is not None:
        judged = ~ignore.astype(bool)
        prediction, target = prediction & judged, target & judged
    return Overlap(
        intersection=int(np.count_nonzero(prediction & target)),
        prediction=int(np.count_nonzero(prediction)),
        target=int(np.count_nonzero(target)),
    )


def mask_scores(overlaps: Iterable[Overlap]) -> dict[str, float]:
    """Metrics of one mask per question; NaN without any.

    Returns:
        giou: mean of the samples' IoU. ciou: sum of intersections / sum of unions (as LISA defines both).
        p@0.5 .. p@0.9: fraction of samples with at least that IoU, as in the RefCOCO literature.
    """
    overlaps = list(overlaps)
    ious = np.array([o.iou for o in overlaps])
    return {
        "giou": float(known_mean(ious)),
        "ciou": float(mask_measures(mask_sums(overlaps))["ciou"]),
        **_precisions(ious),
    }


def mask_sums(overlaps: Sequence[Overlap]) -> np.ndarray:
    """(4,) float64 whole numbers that are additive over images: IoU, samples, intersection, union."""
    return np.array(
        [
            whole(sum(o.iou for o in overlaps)),
            whole(len(overlaps)),
            sum(o.intersection for o in overlaps),
            sum(o.union for o in overlaps),
        ],
        dtype=np.float64,
    )


def mask_measures(sums: np.ndarray) -> Measures:
    """gIoU and cIoU of (..., 4) sums from `mask_sums`."""
    iou, samples, intersection, union = np.moveaxis(sums, -1, 0)
    return {"giou": safe_divide(iou, samples), "ciou": safe_divide(intersection, union)}


def generalized_scores(
    overlaps: Iterable[Overlap], no_target: Iterable[bool], *, min_pixels: int = 1
) -> dict[str, float]:
    """The gRefCOCO metrics (Liu et al., "GRES", CVPR 2023), for expressions with several targets or none.

    A prediction of fewer than `min_pixels` pixels says "no target" and counts as an empty mask. Two rules are in
    use: 1 (only an empty mask says so) and NO_TARGET_PIXELS.

    Args:
        no_target: one for each overlap, True when the annotators say that nothing matches.

    Returns:
        giou: mean IoU, where an expression without target scores 1 if nothing was predicted, else 0.
        ciou: sum of intersections / sum of unions; a mask for an expression without target adds to the unions.
        n_acc: fraction of expressions without target that were recognised. t_acc: fraction of the others with a mask.
        p@0.5 .. p@0.9: fraction of the expressions with a target whose IoU is at least that.
    """
    overlaps, no_target = list(overlaps), np.array(list(no_target), dtype=bool)
    ious = np.array(
        [_generalized_iou(o, bool(n), min_pixels) for o, n in zip(overlaps, no_target, strict=True)]
    )
    measures = generalized_measures(generalized_sums(overlaps, no_target.tolist(), min_pixels=min_pixels))
    return {
        **{name: float(value) for name, value in measures.items()},
        "giou": float(known_mean(ious)),
        **_precisions(ious[~np.array(no_target, dtype=bool)]),
    }


def generalized_sums(
    overlaps: Sequence[Overlap], no_target: Sequence[bool], *, min_pixels: int = 1
) -> np.ndarray:
    """(8,) float64 whole numbers that are additive over images; see `generalized_measures` for their order."""
    sums = np.zeros(8)
    for sample, nothing in zip(overlaps, no_target, strict=True):
        says_nothing = sample.prediction < min_pixels
        if says_nothing:
            sample = Overlap(intersection=0, prediction=0, target=sample.target)
        iou = _generalized_iou(sample, nothing, min_pixels)
        sums += (
            whole(iou), whole(1), sample.intersection, sample.union,
            nothing and says_nothing, nothing, not nothing and not says_nothing, not nothing,
        )  # fmt: skip
    return sums


def generalized_measures(sums: np.ndarray) -> Measures:
    """gIoU, cIoU, N-acc and T-acc of (..., 8) sums from `generalized_sums`."""
    found_nothing, nothing, found_target, target = np.moveaxis(sums[..., 4:], -1, 0)
    return {
        **mask_measures(sums[..., :4]),
        "n_acc": safe_divide(found_nothing, nothing),
        "t_acc": safe_divide(found_target, target),
    }


def _generalized_iou(sample: Overlap, nothing: bool, min_pixels: int) -> float:
    says_nothing = sample.prediction < min_pixels
    if nothing:
        return float(says_nothing)
    return 0.0 if says_nothing else sample.iou


def _precisions(ious: np.ndarray) -> dict[str, float]:
    return {f"p@{bound}": ratio(int(np.count_nonzero(ious >= bound)), len(ious)) for bound in PRECISIONS}
