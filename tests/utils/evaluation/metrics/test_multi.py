"""Masks matched to targets: by hand, and the cost against torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from utils.evaluation.metrics import Overlap, matched_overlaps, multi_measures, multi_sums
from utils.evaluation.metrics.multi import matching_cost


def columns(*ranges, height=4, width=12):
    """(num, height, width) uint8 masks of whole columns."""
    masks = np.zeros((len(ranges), height, width), dtype=np.uint8)
    for mask, (start, end) in zip(masks, ranges, strict=True):
        mask[:, start:end] = 1
    return masks


def logits_of(masks):
    return np.where(masks, 4.0, -4.0).astype(np.float32)


def counted(intersection, prediction, target):
    return Overlap(intersection=intersection, prediction=prediction, target=target)


def test_each_mask_goes_to_the_target_that_it_fits_whatever_their_order():
    targets = columns((0, 4), (4, 8), (8, 12))
    found = matched_overlaps(logits_of(columns((8, 12), (0, 3), (4, 9))), targets)
    assert found == [counted(16, 16, 16), counted(12, 12, 16), counted(16, 20, 16)]


def test_missing_and_superfluous_masks_are_compared_with_nothing():
    targets = columns((0, 4), (4, 8))
    assert matched_overlaps(logits_of(columns((4, 8))), targets) == [counted(16, 16, 16), counted(0, 0, 16)]
    masks = logits_of(columns((0, 2), (4, 8), (0, 4)))
    assert matched_overlaps(masks, targets) == [counted(16, 16, 16), counted(16, 16, 16), counted(0, 8, 0)]
    nothing = np.zeros((0, 4, 12), dtype=np.float32)
    assert matched_overlaps(nothing, targets) == [counted(0, 0, 16)] * 2
    assert matched_overlaps(masks[:1], targets[:0]) == [counted(0, 8, 0)]


def test_the_cost_is_cross_entropy_plus_dice_of_every_pair():
    rng = np.random.default_rng(0)
    logits, targets = rng.normal(0, 5, (3, 5, 7)), rng.random((2, 5, 7)) < 0.4
    cost = matching_cost(logits, targets)
    for row, column in np.ndindex(3, 2):
        x, y = torch.from_numpy(logits[row]), torch.from_numpy(targets[column]).double()
        inside = x.sigmoid()
        dice = 1 - (2 * (inside * y).sum() + 1) / (inside.sum() + y.sum() + 1)
        expected = functional.binary_cross_entropy_with_logits(x, y) + dice
        assert cost[row, column] == pytest.approx(float(expected), abs=1e-9)
    assert np.isfinite(matching_cost(np.array([[[1e5, -1e5]]]), np.array([[[0, 1]]]))).all()


def test_sums_count_the_larger_of_masks_and_targets():
    overlaps = [counted(10, 10, 10), counted(5, 10, 10), counted(0, 0, 20), counted(0, 6, 0)]
    sums = multi_sums(overlaps, num_masks=3, num_targets=3)
    measures = {name: float(value) for name, value in multi_measures(sums).items()}
    assert measures["giou"] == pytest.approx((1 + 1 / 3) / 3)
    assert measures["ciou"] == pytest.approx(15 / (10 + 15 + 20 + 6))
    assert np.isnan(multi_measures(np.zeros(4))["giou"])
