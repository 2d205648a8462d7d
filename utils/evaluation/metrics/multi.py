"""Several masks for one question: matched to the targets one by one, as PixelLM evaluates MUSE."""

from __future__ import annotations

import math

import numpy as np
from scipy.optimize import linear_sum_assignment

from utils.evaluation.metrics.bootstrap import Measures, whole
from utils.evaluation.metrics.common import safe_divide
from utils.evaluation.metrics.masks import Overlap, overlap


def matched_overlaps(logits: np.ndarray, targets: np.ndarray) -> list[Overlap]:
    """The overlaps of the masks of one answer with the targets of its question.

    First those of matched pairs; then of targets without a mask, and of masks without a target, each against nothing.
    The matching minimises the sum of binary cross-entropy and dice loss of the pairs. PixelLM measures both at random
    points; here it is all pixels.

    Args:
        logits: (num_masks, height, width) float, positive inside.
        targets: (num_targets, height, width), non-zero inside.
    """
    masks, targets = logits > 0, targets.astype(bool)
    rows, columns = linear_sum_assignment(matching_cost(logits, targets))
    nothing = np.zeros(targets.shape[1:], dtype=bool)
    return [
        *(overlap(masks[row], targets[column]) for row, column in zip(rows, columns, strict=True)),
        *(overlap(nothing, target) for number, target in enumerate(targets) if number not in columns),
        *(overlap(mask, nothing) for number, mask in enumerate(masks) if number not in rows),
    ]


def matching_cost(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """(num_masks, num_targets) float64: mean binary cross-entropy plus dice loss of every pair."""
    num_pixels = math.prod(logits.shape[1:])
    x = logits.reshape(len(logits), num_pixels).astype(np.float64)
    y = targets.reshape(len(targets), num_pixels).astype(np.float64)
    # Cross-entropy of a pixel: softplus(x) - x y.
    entropy = (np.logaddexp(0, x).sum(axis=1)[:, None] - x @ y.T) / max(num_pixels, 1)
    inside = 0.5 * (1 + np.tanh(x / 2))
    dice = 1 - (2 * inside @ y.T + 1) / (inside.sum(axis=1)[:, None] + y.sum(axis=1) + 1)
    return np.asarray(entropy + dice, dtype=np.float64)


def multi_sums(overlaps: list[Overlap], num_masks: int, num_targets: int) -> np.ndarray:
    """(4,) whole numbers that are additive over images: IoU, the larger of masks and targets, intersection, union."""
    return np.array(
        [
            whole(sum(o.iou for o in overlaps)),
            whole(max(num_masks, num_targets)),
            sum(o.intersection for o in overlaps),
            sum(o.union for o in overlaps),
        ],
        dtype=np.float64,
    )


def multi_measures(sums: np.ndarray) -> Measures:
    """gIoU and cIoU of (..., 4) sums, as PixelLM's validation counts them.

    giou: sum of the IoUs of all pairs / sum over images of the larger of masks and targets. ciou: sum of
    intersections / sum of unions of all pairs.
    """
    iou, most, intersection, union = np.moveaxis(sums, -1, 0)
    return {"giou": safe_divide(iou, most), "ciou": safe_divide(intersection, union)}
