"""Label maps and confusion matrices, without an array of (num_classes, height, width)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from utils.common.label_values import IGNORE, NOTHING, UNCLAIMED
from utils.evaluation.metrics.common import known_mean, safe_divide

if TYPE_CHECKING:
    from torch import Tensor

BLOCK_PIXELS = 1 << 16  # pixels compared at a time on a CPU, so that the running maximum stays in its cache


def label_map(mask_logits: Tensor, class_ids: Sequence[int]) -> np.ndarray:
    """Merge the masks of one image into one label map; where masks overlap the highest logit wins.

    Args:
        mask_logits: (num_masks, height, width) float, on any device; logits > 0 are a mask's pixels.
        class_ids: the class of each mask. A class may come twice; its masks are merged.

    Returns:
        (height, width) int16, UNCLAIMED where no logit is positive. Of equal logits the first mask wins.
    """
    if len(mask_logits) != len(class_ids):
        raise ValueError(f"{len(mask_logits)} masks but {len(class_ids)} class ids")
    masks = mask_logits.detach()
    if masks.device.type != "cpu":
        return _owners_on_device(masks, class_ids)
    # NumPy has no bfloat16; float32 holds its values exactly.
    return _owners((masks.float() if masks.dtype == torch.bfloat16 else masks).numpy(), class_ids)


def _owners(masks: np.ndarray, class_ids: Sequence[int]) -> np.ndarray:
    """`label_map` by NumPy, whose comparisons are vectorized on a CPU; a block of rows at a time."""
    num_masks, height, width = masks.shape
    # Masks are numbered from 1, so that "the last that raised the maximum" is the largest number.
    number = np.min_scalar_type(num_masks).type
    meaning = np.array([UNCLAIMED, *class_ids], dtype=np.int16)
    labels = np.empty((height, width), dtype=np.int16)
    num_rows = max(BLOCK_PIXELS // max(width, 1), 1)
    for top in range(0, height, num_rows):
        block = masks[:, top : top + num_rows]
        best = np.zeros(block.shape[1:], dtype=masks.dtype)  # a mask claims what is above 0
        owner = np.zeros(best.shape, dtype=number)
        wins = np.empty(best.shape, dtype=bool)
        claim = np.empty(best.shape, dtype=number)
        for k, logits in enumerate(block, start=1):
            np.greater(logits, best, out=wins)
            np.multiply(wins.view(np.uint8), number(k), out=claim)
            np.maximum(owner, claim, out=owner)
            np.maximum(best, logits, out=best)
        np.take(meaning, owner, out=labels[top : top + num_rows], mode="clip")
    return labels


def _owners_on_device(masks: Tensor, class_ids: Sequence[int]) -> np.ndarray:
    """`label_map` on the device of the masks, so that one map is copied to the host instead of all masks."""
    best = masks.new_zeros(masks.shape[1:])
    owner = torch.full_like(best, UNCLAIMED, dtype=torch.int16)
    for logits, class_id in zip(masks, class_ids, strict=True):
        owner.masked_fill_(logits > best, class_id)
        best = best.maximum(logits)
    return owner.cpu().numpy()


class ConfusionMatrix:
    """Pixels counted by true and predicted class over a whole data set.

    `counts[t, p]` is the number of pixels of class t that were predicted as p; the extra last column counts
    pixels that no mask claims: a false negative of their class, no false positive. The extra last row counts pixels
    of no class, where every mask is a false positive. Ignored pixels are not counted.
    """

    def __init__(self, num_classes: int) -> None:
        if not 1 <= num_classes < NOTHING - 1:
            raise ValueError(f"num_classes must be in 1..{NOTHING - 2}, got {num_classes}")
        self.num_classes = num_classes
        self.counts = np.zeros((num_classes + 1, num_classes + 1), dtype=np.int64)

    def add(self, truth: np.ndarray, prediction: np.ndarray) -> None:
        """Count one image.

        Args:
            truth: (height, width) integer class ids, NOTHING where there is no class, IGNORE where nothing is judged.
            prediction: (height, width) integer class ids, UNCLAIMED where no mask claims the pixel.
        """
        if truth.shape != prediction.shape:
            raise ValueError(
                f"truth is {truth.shape} but prediction is {prediction.shape}; predict at the label's size"
            )
        width = self.num_classes + 1
        # The special values come before the classes, by wrapping 16 bits: NOTHING is row 0, IGNORE row 1, class c row
        # c + 2; UNCLAIMED is column 0, class c column c + 1. So one comparison finds ids that are out of range.
        rows = _to_uint16("truth", truth, 0, IGNORE) + np.uint16(IGNORE - NOTHING + 1)
        columns = _to_uint16("prediction", prediction, UNCLAIMED, self.num_classes - 1) + np.uint16(1)
        _check_ids("truth", rows, marks=2, num_classes=self.num_classes)
        _check_ids("prediction", columns, marks=1, num_classes=self.num_classes)
        num_cells = (self.num_classes + 2) * width
        cells = rows if num_cells <= 1 << 16 else rows.astype(np.uint32)
        cells *= cells.dtype.type(width)
        cells += columns
        table = np.bincount(cells.ravel(), minlength=num_cells).reshape(-1, width)
        self.counts[:-1, :-1] += table[2:, 1:]
        self.counts[:-1, -1] += table[2:, 0]
        self.counts[-1, :-1] += table[0, 1:]
        self.counts[-1, -1] += table[0, 0]

    def cells(self) -> tuple[np.ndarray, np.ndarray]:
        """The non-zero cells: flat indices into `counts` (n,) int32, and their pixels (n,) int64."""
        flat = self.counts.ravel()
        positions = np.flatnonzero(flat)
        return positions.astype(np.int32), flat[positions]

    def add_cells(self, positions: np.ndarray, pixels: np.ndarray) -> None:
        """Add the `cells` of another matrix."""
        self.counts.ravel()[positions] += pixels

    def merge(self, counts: np.ndarray) -> None:
        """Add the counts of another process."""
        self.counts += counts

    def totals(self) -> np.ndarray:
        """(3, num_classes) int64: true positives, pixels of the class, pixels predicted as the class."""
        hits = np.diagonal(self.counts)[:-1]
        return np.stack([hits, self.counts[:-1].sum(axis=1), self.counts[:, :-1].sum(axis=0)])

    def iou(self) -> np.ndarray:
        """(num_classes,) float64; NaN for a class that is neither in the ground truth nor predicted."""
        return iou_of_totals(self.totals())

    def accuracy(self) -> np.ndarray:
        """(num_classes,) float64: the fraction of each class's pixels that was found; NaN without pixels."""
        hits, true, _ = self.totals()
        return safe_divide(hits, true)

    def summary(self) -> dict[str, float]:
        """mIoU over the classes in ground truth or prediction, mean class accuracy, pixel accuracy."""
        measures = {name: float(value) for name, value in label_measures(self.totals()).items()}
        return {**measures, "num_classes_counted": int(np.isfinite(self.iou()).sum())}


def iou_of_totals(totals: np.ndarray) -> np.ndarray:
    """(..., 3, num_classes) as from `ConfusionMatrix.totals` -> (..., num_classes) IoU."""
    hits, true, predicted = np.moveaxis(totals, -2, 0)
    return safe_divide(hits, true + predicted - hits)


def label_measures(totals: np.ndarray) -> dict[str, np.ndarray]:
    """mIoU, mean accuracy and pixel accuracy of (..., 3, num_classes) totals; each of shape (...)."""
    hits, true, _ = np.moveaxis(totals, -2, 0)
    return {
        "miou": known_mean(iou_of_totals(totals)),
        "mean_accuracy": known_mean(safe_divide(hits, true)),
        "pixel_accuracy": safe_divide(hits.sum(axis=-1), true.sum(axis=-1)),
    }


def _to_uint16(what: str, ids: np.ndarray, lowest: int, highest: int) -> np.ndarray:
    """The ids in 16 bits, -1 as 65535. Wider types are checked first, so that no id wraps unnoticed."""
    if ids.dtype not in (np.uint16, np.int16):
        if ids.size and (ids.min() < lowest or ids.max() > highest):
            raise _outside(what, int(ids.min()), int(ids.max()), highest)
        ids = ids.astype(np.int64)
    return ids.astype(np.uint16)


def _check_ids(what: str, codes: np.ndarray, *, marks: int, num_classes: int) -> None:
    if codes.size and int(codes.max()) >= num_classes + marks:
        ids = codes[codes >= marks].astype(np.int64) - marks
        raise _outside(what, int(ids.min()), int(ids.max()), num_classes - 1)


def _outside(what: str, lowest: int, highest: int, allowed: int) -> ValueError:
    return ValueError(f"{what} holds class ids {lowest}..{highest}, outside 0..{allowed}; wrong class list?")
