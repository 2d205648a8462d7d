"""Presence: is this class in the image? Answers, and the probabilities behind them."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np

from utils.evaluation.metrics.common import ratio, safe_divide


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

    def sums(self) -> np.ndarray:
        """(4,) float64: true and false positives, true and false negatives."""
        return np.array(list(asdict(self).values()), dtype=np.float64)

    def summary(self) -> dict[str, float]:
        measures = {name: float(value) for name, value in presence_measures(self.sums()).items()}
        return {**measures, "num_pairs": int(self.sums().sum())}


def presence_measures(sums: np.ndarray) -> dict[str, np.ndarray]:
    """The numbers of (..., 4) counts as of `PresenceCounts.sums`; NaN where a denominator is 0."""
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


def average_precision(truth: np.ndarray, scores: np.ndarray) -> float:
    """Area under the precision-recall steps: sum of (recall gained) x (precision there), as scikit-learn does.

    Args:
        truth: (n,) bool. scores: (n,) float, the higher the surer; equal ones are taken together.

    Returns:
        NaN when nothing is true.
    """
    hits, taken = _ranked(truth, scores)[1:]
    if not len(hits) or not hits[-1]:
        return math.nan
    return float(np.sum(np.diff(hits, prepend=0) / hits[-1] * (hits / taken)))


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """A threshold and what it gives on the pairs that it was chosen on."""

    threshold: float  # a pair counts as present from this probability on
    f1: float
    precision: float
    recall: float


def best_threshold(truth: np.ndarray, probabilities: np.ndarray) -> Calibration:
    """The probability from which on "present" maximises F1; of several, the highest.

    Args:
        truth: (n,) bool. probabilities: (n,) float.

    Returns:
        NaN throughout when nothing is true: then no threshold is better than another.
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
    """For each distinct score, from the highest: it, the true pairs from it on, and all pairs from it on."""
    truth, scores = np.asarray(truth, dtype=bool), np.asarray(scores, dtype=np.float64)
    if truth.shape != scores.shape:
        raise ValueError(f"truth is {truth.shape} but scores are {scores.shape}")
    order = np.argsort(-scores, kind="stable")
    scores = scores[order]
    last = np.flatnonzero(np.append(np.diff(scores) != 0, True)) if len(scores) else np.zeros(0, dtype=int)
    return scores[last], np.cumsum(truth[order])[last], last + 1
