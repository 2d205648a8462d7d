"""Presence as a binary classification: is this class in the image?"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np

from utils.evaluation.metrics.common import ratio, safe_divide


@dataclass
class PresenceCounts:
    """A binary confusion matrix, counted over pairs (image, class)."""

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

    def sums(self) -> np.ndarray:
        """(4,) float64: true and false positives, true and false negatives."""
        return np.array(list(asdict(self).values()), dtype=np.float64)

    def summary(self) -> dict[str, float]:
        measures = {name: float(value) for name, value in presence_measures(self.sums()).items()}
        return {**measures, "num_pairs": int(self.sums().sum())}


def presence_measures(sums: np.ndarray) -> dict[str, np.ndarray]:
    """The metrics of (..., 4) counts from `PresenceCounts.sums`; NaN where a denominator is 0."""
    tp, fp, tn, fn = np.moveaxis(sums, -1, 0)
    recall, specificity = safe_divide(tp, tp + fn), safe_divide(tn, tn + fp)
    return {
        "accuracy": safe_divide(tp + tn, tp + tn + fp + fn),
        "balanced_accuracy": (recall + specificity) / 2,
        "precision": safe_divide(tp, tp + fp),
        "recall": recall,
        "f1": safe_divide(2 * tp, 2 * tp + fp + fn),
    }


def balanced_pairs(truth: np.ndarray, candidates: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """All present classes of one image, and as many absent ones drawn at random.

    Args:
        truth: (num_classes,) bool, is the class in the image?
        candidates: (num_classes,) bool, may the class be drawn? Restrict this to classes that occur somewhere in the
            split: classes that never occur are too easy to deny.

    Returns:
        sorted class ids, half of them present; the larger group is cut to the size of the smaller.
    """
    present, absent = np.flatnonzero(truth & candidates), np.flatnonzero(~truth & candidates)
    count = min(len(present), len(absent))
    drawn = [rng.choice(group, size=count, replace=False) for group in (present, absent)]
    return np.sort(np.concatenate(drawn))


def average_precision(truth: np.ndarray, scores: np.ndarray) -> float:
    """Average precision as in scikit-learn: the sum of (recall gained) x (precision) over the thresholds.

    Args:
        truth: (n,) bool. scores: (n,) float, higher is more certain; ties share a threshold.

    Returns:
        NaN when nothing is true.
    """
    hits, taken = _ranked(truth, scores)[1:]
    if not len(hits) or not hits[-1]:
        return math.nan
    return float(np.sum(np.diff(hits, prepend=0) / hits[-1] * (hits / taken)))


def roc_auc(truth: np.ndarray, scores: np.ndarray) -> float:
    """Area under the ROC curve, as in scikit-learn.

    It is the probability that something true scores higher than something false; equal scores count half.

    Args:
        truth: (n,) bool. scores: (n,) float, higher is more certain.

    Returns:
        NaN unless some are true and some are false.
    """
    hits, taken = (np.concatenate([[0], counts]) for counts in _ranked(truth, scores)[1:])
    false_alarms = taken - hits
    if not hits[-1] or not false_alarms[-1]:
        return math.nan
    heights = (hits[1:] + hits[:-1]) / (2 * hits[-1])
    return float(np.sum(np.diff(false_alarms) / false_alarms[-1] * heights))


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """A threshold, and its metrics on the pairs that it was chosen on."""

    threshold: float  # a pair counts as present from this probability on
    f1: float
    precision: float
    recall: float


def best_threshold(truth: np.ndarray, probabilities: np.ndarray) -> Calibration:
    """The threshold of the probability that maximises F1; of several, the highest.

    Args:
        truth: (n,) bool. probabilities: (n,) float.

    Returns:
        NaN throughout when nothing is true, as all thresholds are then equally good.
    """
    thresholds, hits, taken = _ranked(truth, probabilities)
    if not len(hits) or not hits[-1]:
        return Calibration(threshold=math.nan, f1=math.nan, precision=math.nan, recall=math.nan)
    f1 = 2 * hits / (taken + hits[-1])
    best = int(f1.argmax())
    return Calibration(
        threshold=float(thresholds[best]),
        f1=float(f1[best]),
        precision=ratio(hits[best], taken[best]),
        recall=ratio(hits[best], hits[-1]),
    )


def _ranked(truth: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The distinct scores in descending order; for each the true pairs and all pairs with at least that score."""
    truth, scores = np.asarray(truth, dtype=bool), np.asarray(scores, dtype=np.float64)
    if truth.shape != scores.shape:
        raise ValueError(f"truth is {truth.shape} but scores are {scores.shape}")
    order = np.argsort(-scores, kind="stable")
    scores = scores[order]
    last = np.flatnonzero(np.append(np.diff(scores) != 0, True)) if len(scores) else np.zeros(0, dtype=int)
    return scores[last], np.cumsum(truth[order])[last], last + 1
