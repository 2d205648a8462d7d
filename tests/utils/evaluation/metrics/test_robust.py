"""The metrics of R-RefCOCO against hand-made cases, and against a plain loop."""

from __future__ import annotations

import math

import numpy as np
import pytest

from utils.evaluation.metrics import Overlap, robust_measures, robust_sums


def sentence(intersection, prediction, target):
    return Overlap(intersection=intersection, prediction=prediction, target=target)


# Two references of one image: the first has two true and two false sentences, the second one of each.
OVERLAPS = [
    sentence(10, 10, 10), sentence(5, 10, 10), sentence(0, 0, 0), sentence(0, 30, 0),
    sentence(0, 0, 20), sentence(0, 0, 0),
]  # fmt: skip
FALSE = [False, False, True, True, False, True]
REFERENCES = [3, 3, 3, 3, 8, 8]


def measures(*arguments):
    return {name: float(value) for name, value in robust_measures(robust_sums(*arguments)).items()}


def test_by_hand():
    found = measures(OVERLAPS, FALSE, REFERENCES)
    assert found["miou"] == pytest.approx(((1 + 1 / 3) / 2 + 0) / 2)
    assert found["oiou"] == pytest.approx(15 / (10 + 15 + 20))
    assert found["mrr"] == pytest.approx((1 / 2 + 1) / 2)
    assert found["riou"] == pytest.approx((15 / (25 + 30) + 0) / 2)


def test_sums_of_images_add_up():
    one = robust_sums(OVERLAPS[:4], FALSE[:4], REFERENCES[:4])
    other = robust_sums(OVERLAPS[4:], FALSE[4:], REFERENCES[4:])
    assert np.array_equal(one + other, robust_sums(OVERLAPS, FALSE, REFERENCES))


def test_references_of_one_kind_count_where_they_can():
    found = measures(OVERLAPS[:2], FALSE[:2], [0, 0])
    assert math.isnan(found["mrr"])
    assert found["riou"] == pytest.approx(15 / 25)
    found = measures(OVERLAPS[2:4], FALSE[2:4], [0, 0])
    assert found["mrr"] == 0.5
    assert all(math.isnan(found[name]) for name in ("miou", "oiou", "riou"))
    assert all(math.isnan(value) for value in measures([], [], []).values())
