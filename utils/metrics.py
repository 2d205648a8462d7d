"""Numbers of the field, as pure functions of counts: NumPy in, plain floats out.

A value without data (a mean over nothing) is NaN, never 0: a missing measurement is not a bad one.
"""

from __future__ import annotations

import math
import re
import string
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from utils.data.types import IGNORE

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import Tensor

UNCLAIMED = -1  # in a predicted label map: no mask claims this pixel
NO_TARGET_PIXELS = 50  # gRefCOCO's second rule: a union of fewer pixels is an answer "nothing"


def ratio(part: float, whole: float) -> float:
    """part / whole, NaN when whole is 0."""
    return float(part) / float(whole) if whole else math.nan


# --------------------------------------------------------------------------------------- label maps


def label_map(mask_logits: Tensor, class_ids: Sequence[int]) -> np.ndarray:
    """Put the masks of one image into one map; where masks overlap the highest logit wins.

    Args:
        mask_logits: (num_masks, height, width) float, on any device; logits > 0 are a mask's pixels.
        class_ids: the class of each mask. A class may come twice: its masks are united.

    Returns:
        (height, width) int16, UNCLAIMED where no logit is positive. Of equal logits the first mask wins.
    """
    if len(mask_logits) != len(class_ids):
        raise ValueError(f"{len(mask_logits)} masks but {len(class_ids)} class ids")
    height, width = mask_logits.shape[-2:]
    if not len(class_ids):
        return np.full((height, width), UNCLAIMED, dtype=np.int16)
    # A running maximum: two maps in memory, whatever the number of masks.
    best = mask_logits[0].clone()
    owner = best.new_full((height, width), UNCLAIMED).short()
    owner.masked_fill_(best > 0, class_ids[0])
    for logits, class_id in zip(mask_logits[1:], class_ids[1:], strict=True):
        owner.masked_fill_((logits > best) & (logits > 0), class_id)
        best = best.maximum(logits)
    return owner.cpu().numpy()


class ConfusionMatrix:
    """Pixels counted by true and predicted class over a whole data set, without a (classes, H, W) array.

    `counts[t, p]` is the number of pixels of class t that were predicted as p; the extra last column counts
    pixels that no mask claimed: a miss of their class, nobody's false positive. Ignored pixels are nowhere.
    """

    def __init__(self, num_classes: int) -> None:
        if num_classes < 1:
            raise ValueError(f"num_classes must be >= 1, got {num_classes}")
        self.num_classes = num_classes
        self.counts = np.zeros((num_classes, num_classes + 1), dtype=np.int64)

    def add(self, truth: np.ndarray, prediction: np.ndarray, *, ignore: int = IGNORE) -> None:
        """Count one image.

        Args:
            truth: (height, width) integer class ids, `ignore` where nobody is to be judged.
            prediction: (height, width) integer class ids, UNCLAIMED where no mask claims the pixel.
        """
        if truth.shape != prediction.shape:
            raise ValueError(
                f"truth is {truth.shape} but prediction is {prediction.shape}; predict at the label's size"
            )
        judged = truth != ignore
        true_ids = truth[judged].astype(np.int32)
        predicted_ids = prediction[judged].astype(np.int32)
        predicted_ids[predicted_ids == UNCLAIMED] = self.num_classes
        _check_ids("truth", true_ids, self.num_classes - 1)
        _check_ids("prediction", predicted_ids, self.num_classes)
        cells = true_ids * (self.num_classes + 1) + predicted_ids
        self.counts += np.bincount(cells, minlength=self.counts.size).reshape(self.counts.shape)

    def merge(self, counts: np.ndarray) -> None:
        """Add the counts of another process."""
        self.counts += counts

    def iou(self) -> np.ndarray:
        """(num_classes,) float64; NaN for a class that is neither in the ground truth nor predicted."""
        hits = np.diagonal(self.counts)
        union = self.counts.sum(axis=1) + self.counts[:, :-1].sum(axis=0) - hits
        return _safe_divide(hits, union)

    def accuracy(self) -> np.ndarray:
        """(num_classes,) float64: the share of each class's pixels that was found; NaN without pixels."""
        return _safe_divide(np.diagonal(self.counts), self.counts.sum(axis=1))

    def summary(self) -> dict[str, float]:
        """mIoU over classes that occur in ground truth or prediction, mean class accuracy, pixel accuracy."""
        iou, accuracy = self.iou(), self.accuracy()
        return {
            "miou": _nan_mean(iou),
            "mean_accuracy": _nan_mean(accuracy),
            "pixel_accuracy": ratio(np.diagonal(self.counts).sum(), self.counts.sum()),
            "num_classes_counted": int(np.isfinite(iou).sum()),
        }


def _check_ids(what: str, ids: np.ndarray, highest: int) -> None:
    if ids.size and (ids.min() < 0 or ids.max() > highest):
        raise ValueError(
            f"{what} holds class ids {ids.min()}..{ids.max()}, outside 0..{highest}; wrong class list?"
        )


def _safe_divide(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(len(part), np.nan), where=whole > 0)


def _nan_mean(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else math.nan


# -------------------------------------------------------------------------------------- binary masks


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
        prediction, target: (height, width), bool or anything whose non-zero pixels are the mask.
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
    """gIoU = mean of the samples' IoU; cIoU = sum of intersections / sum of unions (as LISA defines both)."""
    overlaps = list(overlaps)
    return {
        "giou": _nan_mean(np.array([o.iou for o in overlaps])),
        "ciou": ratio(sum(o.intersection for o in overlaps), sum(o.union for o in overlaps)),
    }


def generalized_scores(
    overlaps: Iterable[Overlap], no_target: Iterable[bool], *, min_pixels: int = 1
) -> dict[str, float]:
    """The gRefCOCO numbers (Liu et al., "GRES", CVPR 2023), for expressions with several targets or none.

    A prediction of fewer than `min_pixels` pixels is an answer "no target" and counts as an empty mask. Two
    rules are in use: 1 (only an empty answer is one) and NO_TARGET_PIXELS.

    Args:
        no_target: one an overlap, True when the annotators say that nothing matches.

    Returns:
        giou: mean IoU, where a true no-target scores 1 if predicted so, else 0.
        ciou: sum of intersections / sum of unions; a mask drawn for nothing adds to the unions.
        n_acc: share of no-target expressions recognised. t_acc: share of the others that got a mask.
    """
    ious: list[float] = []
    intersections = unions = 0
    answered_nothing: dict[bool, list[bool]] = {True: [], False: []}  # key: is there truly no target?
    for sample, is_nothing in zip(overlaps, no_target, strict=True):
        says_nothing = sample.prediction < min_pixels
        if says_nothing:
            sample = Overlap(intersection=0, prediction=0, target=sample.target)
        answered_nothing[bool(is_nothing)].append(says_nothing)
        ious.append(float(says_nothing) if is_nothing else ratio(sample.intersection, sample.union or 1))
        intersections += sample.intersection
        unions += sample.union
    without, having = answered_nothing[True], answered_nothing[False]
    return {
        "giou": _nan_mean(np.array(ious)),
        "ciou": ratio(intersections, unions),
        "n_acc": ratio(sum(without), len(without)),
        "t_acc": ratio(len(having) - sum(having), len(having)),
    }


# ----------------------------------------------------------------------------------------- presence


@dataclass
class PresenceCounts:
    """Answers to "is this class in the image?", as counts of pairs (image, class)."""

    true_positives: int = 0
    false_positives: int = 0
    true_negatives: int = 0
    false_negatives: int = 0

    def add(self, truth: np.ndarray, prediction: np.ndarray) -> None:
        """truth, prediction: bool arrays of one shape."""
        truth, prediction = np.asarray(truth, dtype=bool), np.asarray(prediction, dtype=bool)
        if truth.shape != prediction.shape:
            raise ValueError(f"truth is {truth.shape} but prediction is {prediction.shape}")
        self.true_positives += int(np.count_nonzero(truth & prediction))
        self.false_positives += int(np.count_nonzero(~truth & prediction))
        self.true_negatives += int(np.count_nonzero(~truth & ~prediction))
        self.false_negatives += int(np.count_nonzero(truth & ~prediction))

    def summary(self) -> dict[str, float]:
        tp, fp = self.true_positives, self.false_positives
        tn, fn = self.true_negatives, self.false_negatives
        recall, specificity = ratio(tp, tp + fn), ratio(tn, tn + fp)
        return {
            "accuracy": ratio(tp + tn, tp + tn + fp + fn),
            "balanced_accuracy": (recall + specificity) / 2,
            "precision": ratio(tp, tp + fp),
            "recall": recall,
            "f1": ratio(2 * tp, 2 * tp + fp + fn),
            "num_pairs": tp + tn + fp + fn,
        }


def balanced_pairs(truth: np.ndarray, candidates: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw, for one image, every present class and as many absent ones.

    Args:
        truth: (num_classes,) bool, is the class in the image?
        candidates: (num_classes,) bool, may the class be asked? Restrict this to classes that occur somewhere
            in the split: to deny a class that is never there is no achievement.

    Returns:
        sorted class ids, half of them present; the larger group is cut to the size of the smaller.
    """
    present, absent = np.flatnonzero(truth & candidates), np.flatnonzero(~truth & candidates)
    count = min(len(present), len(absent))
    drawn = [rng.choice(group, size=count, replace=False) for group in (present, absent)]
    return np.sort(np.concatenate(drawn))


# --------------------------------------------------------------------------------------------- text


_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise_answer(text: str) -> str:
    """Lower case, no punctuation, no articles, single spaces (the rule of SQuAD's evaluation)."""
    text = text.lower().translate(_PUNCTUATION)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


@dataclass
class ExactMatch:
    """Share of answers that equal the expected text after `normalise_answer`."""

    matches: list[bool] = field(default_factory=list)

    def add(self, answer: str, expected: str) -> bool:
        self.matches.append(normalise_answer(answer) == normalise_answer(expected))
        return self.matches[-1]

    def summary(self) -> dict[str, float]:
        return {"exact_match": ratio(sum(self.matches), len(self.matches))}
