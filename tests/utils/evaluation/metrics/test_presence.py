"""Presence against hand-made cases, torchmetrics and scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from utils.evaluation.metrics import (
    PresenceCounts,
    average_precision,
    balanced_pairs,
    best_threshold,
    roc_auc,
)


def test_presence_by_hand_and_against_torchmetrics():
    from torchmetrics.functional.classification import (
        binary_accuracy,
        binary_f1_score,
        binary_precision,
        binary_recall,
        multiclass_accuracy,
    )

    counts = PresenceCounts()
    counts.add(np.array([1, 1, 1, 0, 0, 0, 0, 0]), np.array([1, 1, 0, 1, 0, 0, 0, 0]))
    summary = counts.summary()
    assert summary["accuracy"] == pytest.approx(6 / 8)
    assert summary["balanced_accuracy"] == pytest.approx((2 / 3 + 4 / 5) / 2)

    rng = np.random.default_rng(0)
    truth, prediction = rng.random(200) < 0.2, rng.random(200) < 0.4
    counts = PresenceCounts()
    counts.add(truth[:77], prediction[:77])
    counts.add(truth[77:], prediction[77:])
    said, true = torch.from_numpy(prediction).int(), torch.from_numpy(truth).int()
    expected = {
        "accuracy": binary_accuracy(said, true),
        "precision": binary_precision(said, true),
        "recall": binary_recall(said, true),
        "f1": binary_f1_score(said, true),
        "balanced_accuracy": multiclass_accuracy(said, true, num_classes=2, average="macro"),
    }
    for name, value in expected.items():
        assert counts.summary()[name] == pytest.approx(float(value), abs=1e-6), name


def test_balanced_pairs_hold_every_present_class_and_as_many_absent_candidates():
    truth = np.zeros(10, dtype=bool)
    truth[[1, 4]] = True
    candidates = np.ones(10, dtype=bool)
    candidates[[0, 9]] = False
    pairs = balanced_pairs(truth, candidates, np.random.default_rng(3))
    assert truth[pairs].sum() == 2
    assert len(pairs) == 4
    assert not {0, 9} & set(pairs.tolist())
    assert pairs.tolist() == balanced_pairs(truth, candidates, np.random.default_rng(3)).tolist()


def test_balanced_pairs_stay_balanced_when_few_classes_are_absent():
    truth = np.array([True, True, True, False])
    pairs = balanced_pairs(truth, np.ones(4, dtype=bool), np.random.default_rng(0))
    assert len(pairs) == 2
    assert 3 in pairs


# ----------------------------------------------------------------------------------- probabilities


@pytest.mark.parametrize("seed", range(5))
def test_average_precision_equals_scikit_learn_also_with_ties(seed):
    from sklearn.metrics import average_precision_score

    rng = np.random.default_rng(seed)
    truth = rng.random(60) < 0.3
    scores = rng.random(60) if seed % 2 else rng.integers(0, 6, 60) / 5
    assert average_precision(truth, scores) == pytest.approx(
        average_precision_score(truth, scores), abs=1e-12
    )


def test_average_precision_by_hand_and_without_positives():
    # ranks: true, false, true -> 1/2 x 1 + 1/2 x 2/3
    assert average_precision(np.array([1, 1, 0]), np.array([0.9, 0.3, 0.5])) == pytest.approx(1 / 2 + 1 / 3)
    assert math.isnan(average_precision(np.zeros(3), np.ones(3)))
    assert math.isnan(average_precision(np.zeros(0), np.zeros(0)))


@pytest.mark.parametrize("seed", range(5))
def test_best_threshold_is_the_maximum_of_scikit_learns_curve(seed):
    from sklearn.metrics import f1_score, precision_recall_curve

    rng = np.random.default_rng(seed)
    truth = rng.random(80) < 0.25
    probabilities = (0.4 * truth + 0.6 * rng.random(80)).round(2 if seed % 2 else 9)
    best = best_threshold(truth, probabilities)
    precision, recall, _ = precision_recall_curve(truth, probabilities)
    with np.errstate(invalid="ignore"):
        f1 = np.nanmax(2 * precision * recall / (precision + recall))
    assert best.f1 == pytest.approx(f1, abs=1e-12)
    assert f1_score(truth, probabilities >= best.threshold) == pytest.approx(best.f1, abs=1e-12)
    said = probabilities >= best.threshold
    assert best.precision == pytest.approx((said & truth).sum() / said.sum())
    assert best.recall == pytest.approx((said & truth).sum() / truth.sum())


def test_best_threshold_is_the_highest_of_equals_and_nan_without_positives():
    # from 0.8 on: 1 of 1 and 1 of 2 true, F1 2/3; from 0.2 on: 2 of 4, F1 2/3
    best = best_threshold(np.array([1, 0, 0, 1]), np.array([0.8, 0.6, 0.4, 0.2]))
    assert (best.threshold, best.f1) == (0.8, pytest.approx(2 / 3))
    assert math.isnan(best_threshold(np.zeros(2), np.ones(2)).threshold)


def test_the_area_under_the_roc_curve_is_the_share_of_pairs_in_the_right_order():
    truth = np.array([1, 0, 1, 0, 0])
    # Of six pairs of something true and something false: 0.9 is above all three, 0.4 above one, equal to one.
    assert roc_auc(truth, np.array([0.9, 0.6, 0.4, 0.4, 0.1])) == pytest.approx((3 + 1 + 1 / 2) / 6)
    assert roc_auc(truth, np.full(5, 0.3)) == 0.5
    assert roc_auc(truth, truth) == 1.0
    assert roc_auc(truth, -truth) == 0.0


@pytest.mark.parametrize("num_levels", [3, 1000])
def test_the_area_under_the_roc_curve_equals_that_of_scikit_learn_with_and_without_ties(num_levels):
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(1)
    for _ in range(5):
        truth = rng.random(60) < 0.3
        scores = rng.integers(num_levels, size=60) / num_levels + 0.2 * truth
        assert roc_auc(truth, scores) == pytest.approx(roc_auc_score(truth, scores))


@pytest.mark.parametrize("truth", [[], [True, True], [False]])
def test_without_both_kinds_there_is_no_area(truth):
    assert math.isnan(roc_auc(np.array(truth, dtype=bool), np.linspace(0, 1, len(truth))))
