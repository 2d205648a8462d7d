"""Metrics as pure functions of counts: NumPy in, floats out.

A value without data (a mean over nothing) is NaN, never 0: a missing measurement is not a bad one.
"""

from utils.evaluation.metrics.bootstrap import CONFIDENCE, NUM_RESAMPLES, intervals
from utils.evaluation.metrics.instances import InstanceRecord, instance_measures
from utils.evaluation.metrics.labels import ConfusionMatrix, label_map, label_measures
from utils.evaluation.metrics.masks import (
    NO_TARGET_PIXELS,
    Overlap,
    generalized_measures,
    generalized_scores,
    generalized_sums,
    mask_measures,
    mask_scores,
    mask_sums,
    overlap,
)
from utils.evaluation.metrics.multi import matched_overlaps, multi_measures, multi_sums
from utils.evaluation.metrics.presence import (
    Calibration,
    PresenceCounts,
    average_precision,
    balanced_pairs,
    best_threshold,
    presence_measures,
    roc_auc,
)
from utils.evaluation.metrics.robust import robust_measures, robust_sums
from utils.evaluation.metrics.text import exact_match, normalise_answer, rouge_l

__all__ = [
    "CONFIDENCE",
    "NO_TARGET_PIXELS",
    "NUM_RESAMPLES",
    "Calibration",
    "ConfusionMatrix",
    "InstanceRecord",
    "Overlap",
    "PresenceCounts",
    "average_precision",
    "balanced_pairs",
    "best_threshold",
    "exact_match",
    "generalized_measures",
    "generalized_scores",
    "generalized_sums",
    "instance_measures",
    "intervals",
    "label_map",
    "label_measures",
    "mask_measures",
    "mask_scores",
    "mask_sums",
    "matched_overlaps",
    "multi_measures",
    "multi_sums",
    "normalise_answer",
    "overlap",
    "presence_measures",
    "robust_measures",
    "robust_sums",
    "roc_auc",
    "rouge_l",
]
