"""Confidence intervals against a loop that draws image by image."""

from __future__ import annotations

import math

import numpy as np
import pytest

from utils.evaluation.metrics import (
    ConfusionMatrix,
    Overlap,
    intervals,
    label_measures,
    mask_measures,
    mask_scores,
    mask_sums,
)
from utils.evaluation.metrics.bootstrap import NUM_RESAMPLES


def totals_of_images(num_images: int) -> np.ndarray:
    rng = np.random.default_rng(1)
    totals = []
    for _ in range(num_images):
        matrix = ConfusionMatrix(4)
        truth = rng.integers(0, 3, (8, 9)).astype(np.uint16)
        matrix.add(truth, np.where(rng.random(truth.shape) < 0.6, truth, rng.integers(-1, 3, truth.shape)))
        totals.append(matrix.totals())
    return np.stack(totals)


def test_intervals_equal_a_slow_loop_over_the_same_draws():
    totals = totals_of_images(12)
    rng = np.random.default_rng(7)
    values = []
    for _ in range(NUM_RESAMPLES // 100):
        for images in rng.integers(12, size=(100, 12)):
            hits, true, predicted = totals[images].sum(axis=0).astype(float)
            union = true + predicted - hits
            values.append(np.mean((hits / np.where(union > 0, union, 1))[union > 0]))
    bounds = intervals(totals, label_measures, seed=7)
    assert bounds["miou_low"] == pytest.approx(np.quantile(values, 0.025), abs=1e-12)
    assert bounds["miou_high"] == pytest.approx(np.quantile(values, 0.975), abs=1e-12)


def test_intervals_hold_the_number_and_shrink_with_more_images():
    few, many = totals_of_images(10), totals_of_images(160)
    widths = []
    for totals in (few, many):
        bounds = intervals(totals, label_measures)
        value = float(label_measures(totals.sum(axis=0))["miou"])
        assert bounds["miou_low"] < value < bounds["miou_high"]
        widths.append(bounds["miou_high"] - bounds["miou_low"])
    assert widths[1] == pytest.approx(widths[0] / 4, rel=0.4)


def test_a_mean_has_the_interval_of_the_normal_distribution():
    rng = np.random.default_rng(3)
    overlaps = [
        Overlap(intersection=int(k), prediction=100, target=int(k)) for k in rng.integers(1, 101, 400)
    ]
    bounds = intervals(np.stack([mask_sums([o]) for o in overlaps]), mask_measures)
    ious = np.array([o.iou for o in overlaps])
    half = 1.96 * ious.std() / math.sqrt(len(ious))
    assert bounds["giou_low"] == pytest.approx(ious.mean() - half, abs=0.15 * half)
    assert bounds["giou_high"] == pytest.approx(ious.mean() + half, abs=0.15 * half)
    assert bounds["ciou_low"] < mask_scores(overlaps)["ciou"] < bounds["ciou_high"]


def test_the_same_seed_gives_the_same_bounds_and_the_order_of_images_only_other_draws():
    totals = totals_of_images(9)
    assert intervals(totals, label_measures, seed=1) == intervals(totals, label_measures, seed=1)
    assert intervals(totals, label_measures, seed=1) != intervals(totals, label_measures, seed=2)


def test_one_image_or_none_has_no_interval():
    for count in (0, 1):
        bounds = intervals(totals_of_images(3)[:count], label_measures)
        assert set(bounds) >= {"miou_low", "miou_high"}
        assert all(math.isnan(value) for value in bounds.values())


def test_draws_in_which_a_number_does_not_exist_are_left_out():
    sums = np.array([[0.0, 0.0], [1.0, 2.0], [1.0, 2.0]])
    bounds = intervals(
        sums, lambda s: {"share": np.divide(s[:, 0], s[:, 1], out=np.full(len(s), np.nan), where=s[:, 1] > 0)}
    )
    assert bounds == {"share_low": 0.5, "share_high": 0.5}
