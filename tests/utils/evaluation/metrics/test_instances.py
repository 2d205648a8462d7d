"""COCO's average precision on cases small enough to count by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from utils.evaluation.metrics import InstanceRecord, instance_measures

SIDE = 200


def square(left: int, side: int = 40) -> bytes:
    """The run lengths of a square at the top; medium by COCO's areas (32 x 32 to 96 x 96)."""
    mask = np.zeros((SIDE, SIDE), dtype=np.uint8, order="F")
    mask[:side, left : left + side] = 1
    return coco_mask.encode(mask)["counts"]


def record(true=(), found=(), crowds=None):
    """`true`: class and mask of each; `found`: class, mask and score."""
    return InstanceRecord(
        size=(SIDE, SIDE),
        true_classes=np.array([class_id for class_id, _ in true], dtype=np.int16),
        true_masks=tuple(mask for _, mask in true),
        crowds=np.array(crowds or [False] * len(true), dtype=bool),
        found_classes=np.array([class_id for class_id, _, _ in found], dtype=np.int16),
        found_masks=tuple(mask for _, mask, _ in found),
        scores=np.array([score for _, _, score in found], dtype=np.float64),
    )


def test_what_is_found_exactly_has_an_ap_of_one():
    numbers, of_class = instance_measures([record([(0, square(0))], [(0, square(0), 0.9)])], 2)
    for name in ("ap", "ap50", "ap_medium", "ar100"):
        assert numbers[name] == pytest.approx(1)
    assert math.isnan(numbers["ap_small"])
    assert of_class[0] == pytest.approx(1)
    assert math.isnan(of_class[1])  # of which nothing was drawn


def test_a_wrong_one_in_front_of_a_right_one_halves_the_precision():
    # Ranked: wrong, right. Recall 1 is reached with a precision of 1/2, which holds at all 101 recalls.
    found = [(0, square(100), 0.9), (0, square(0), 0.5)]
    assert instance_measures([record([(0, square(0))], found)], 1)[0]["ap"] == pytest.approx(0.5)
    # Behind it, the wrong one costs nothing.
    behind = [(0, square(100), 0.3), (0, square(0), 0.5)]
    assert instance_measures([record([(0, square(0))], behind)], 1)[0]["ap"] == pytest.approx(1)


def test_one_of_two_found_has_the_recalls_up_to_a_half():
    numbers, _ = instance_measures([record([(0, square(0)), (0, square(100))], [(0, square(0), 0.9)])], 1)
    assert numbers["ap"] == pytest.approx(51 / 101)  # recalls 0, 0.01, ..., 0.5
    assert numbers["ar100"] == pytest.approx(0.5)


def test_a_shifted_mask_counts_up_to_its_iou():
    # Shifted by 10 of 40 columns: 30 / 50 = 0.6, which is found at thresholds 0.5, 0.55 and 0.6 of ten.
    numbers, _ = instance_measures([record([(0, square(0))], [(0, square(10), 0.9)])], 1)
    assert numbers["ap50"] == pytest.approx(1)
    assert numbers["ap75"] == 0
    assert numbers["ap"] == pytest.approx(0.3)


def test_classes_and_images_are_counted_for_themselves():
    images = [
        record([(0, square(0))], [(0, square(0), 0.9), (1, square(0), 0.8)]),
        record([(1, square(100))], [(0, square(100), 0.7)]),
    ]
    numbers, of_class = instance_measures(images, 2)
    assert of_class.tolist() == pytest.approx([1.0, 0.0])
    assert numbers["ap"] == pytest.approx(0.5)


def test_what_is_found_in_a_crowd_is_neither_right_nor_wrong():
    true, found = [(0, square(0)), (0, square(50, 80))], [(0, square(60), 0.95), (0, square(0), 0.5)]
    assert instance_measures([record(true, found, [False, True])], 1)[0]["ap"] == pytest.approx(1)
    assert instance_measures([record(true, found)], 1)[0]["ap"] < 0.6


def test_without_findings_ap_is_zero_and_without_truth_unknown():
    assert instance_measures([record([(0, square(0))])], 1)[0]["ap"] == 0
    numbers, of_class = instance_measures([record(found=[(0, square(0), 0.5)])], 1)
    assert math.isnan(numbers["ap"])
    assert math.isnan(of_class[0])
