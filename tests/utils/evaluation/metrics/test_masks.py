"""Binary masks against hand-made tables, pycocotools and the outputs of the released evaluation."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from utils.evaluation.metrics import NO_TARGET_PIXELS, Overlap, generalized_scores, mask_scores, overlap


def test_overlap_counts_by_hand():
    prediction = np.array([[1, 1, 0], [0, 1, 0]])
    target = np.array([[1, 0, 0], [1, 1, 0]])
    counts = overlap(prediction, target)
    assert (counts.intersection, counts.union, counts.iou) == (2, 4, 0.5)
    ignore = np.array([[False, True, False], [True, False, False]])
    assert overlap(prediction, target, ignore).iou == 1.0


def test_overlap_equals_pycocotools():
    from pycocotools import mask as coco

    rng = np.random.default_rng(0)
    for _ in range(5):
        prediction, target = rng.random((2, 13, 17)) < 0.4
        codes = [coco.encode(np.asfortranarray(mask, dtype=np.uint8)) for mask in (prediction, target)]
        expected = coco.iou(codes[:1], codes[1:], [0])[0, 0]
        assert overlap(prediction, target).iou == pytest.approx(expected)


def test_giou_and_ciou_by_hand_with_empty_masks():
    samples = [
        Overlap(intersection=10, prediction=10, target=20),  # IoU 1/2
        Overlap(intersection=0, prediction=0, target=30),  # nothing predicted: 0
        Overlap(intersection=0, prediction=0, target=0),  # rightly nothing: 1
        Overlap(intersection=0, prediction=5, target=0),  # wrongly something: 0
    ]
    scores = mask_scores(samples)
    assert scores["giou"] == pytest.approx((0.5 + 0 + 1 + 0) / 4)
    assert scores["ciou"] == pytest.approx(10 / (20 + 30 + 0 + 5))


def test_no_samples_give_nan_not_zero():
    assert all(math.isnan(value) for value in mask_scores([]).values())
    assert all(math.isnan(value) for value in generalized_scores([], []).values())


def test_giou_and_ciou_equal_the_released_evaluation(golden_part):
    arrays = np.load(golden_part / "metrics.npz")
    giou, ciou = json.loads((golden_part / "metrics.json").read_text())["giou_ciou"]
    samples = [
        overlap(logits > 0, truth == 1, truth == 255)  # 255: as ReasonSeg writes it
        for k in range(4)
        for logits, truth in zip(arrays[f"giou_pred{k}"], arrays[f"giou_gt{k}"], strict=True)
    ]
    scores = mask_scores(samples)
    assert scores["giou"] == pytest.approx(giou, rel=1e-4)
    assert scores["ciou"] == pytest.approx(ciou, rel=1e-4)


def test_generalized_scores_by_hand_with_and_without_the_pixel_rule():
    samples = [
        Overlap(intersection=0, prediction=0, target=0),  # no target, said so
        Overlap(intersection=0, prediction=49, target=0),  # no target, a speck drawn
        Overlap(intersection=0, prediction=400, target=0),  # no target, a mask drawn
        Overlap(intersection=100, prediction=100, target=200),  # IoU 1/2
        Overlap(intersection=30, prediction=40, target=40),  # IoU 3/5, but a speck
        Overlap(intersection=0, prediction=0, target=300),  # a target missed
    ]
    no_target = [True, True, True, False, False, False]
    plain = generalized_scores(samples, no_target)
    assert plain["n_acc"] == pytest.approx(1 / 3)
    assert plain["t_acc"] == pytest.approx(2 / 3)
    assert plain["giou"] == pytest.approx((1 + 0 + 0 + 1 / 2 + 3 / 5 + 0) / 6)
    assert plain["ciou"] == pytest.approx(130 / (0 + 49 + 400 + 200 + 50 + 300))

    ruled = generalized_scores(samples, no_target, min_pixels=NO_TARGET_PIXELS)
    assert ruled["n_acc"] == pytest.approx(2 / 3)
    assert ruled["t_acc"] == pytest.approx(1 / 3)
    assert ruled["giou"] == pytest.approx((1 + 1 + 0 + 1 / 2 + 0 + 0) / 6)
    assert ruled["ciou"] == pytest.approx(100 / (0 + 0 + 400 + 200 + 40 + 300))


def test_exactly_fifty_pixels_are_a_mask():
    fifty = [Overlap(intersection=50, prediction=50, target=50)]
    assert generalized_scores(fifty, [False], min_pixels=NO_TARGET_PIXELS)["t_acc"] == 1.0


def test_every_number_of_a_table_by_hand_with_empty_masks_and_ignored_pixels():
    rows = {  # prediction, target, ignore -> intersection, union
        "half": ("1100", "1110", "0001"),  # 2 / 3
        "nothing predicted": ("0000", "0111", "0000"),  # 0 / 3
        "rightly nothing": ("0000", "0000", "0000"),  # 0 / 0, IoU 1
        "invented": ("0110", "0000", "0000"),  # 0 / 2
        "right but for ignored pixels": ("1111", "1100", "0011"),  # 2 / 2
        "all ignored": ("1100", "0011", "1111"),  # 0 / 0, IoU 1
    }
    overlaps = [
        overlap(*(np.array([[int(pixel) for pixel in row]]) for row in masks)) for masks in rows.values()
    ]
    assert [(o.intersection, o.union) for o in overlaps] == [(2, 3), (0, 3), (0, 0), (0, 2), (2, 2), (0, 0)]
    scores = mask_scores(overlaps)
    assert scores["giou"] == pytest.approx((2 / 3 + 0 + 1 + 0 + 1 + 1) / 6, abs=1e-12)
    assert scores["ciou"] == pytest.approx(4 / 10, abs=1e-12)
    assert scores["p@0.5"] == pytest.approx(4 / 6)
    assert scores["p@0.7"] == scores["p@0.9"] == pytest.approx(3 / 6)


def test_precision_counts_an_iou_that_is_just_reached():
    overlaps = [Overlap(intersection=k, prediction=k, target=10) for k in (4, 5, 7, 9, 10)]
    scores = mask_scores(overlaps)
    assert [scores[f"p@{bound}"] for bound in (0.5, 0.6, 0.7, 0.8, 0.9)] == [0.8, 0.6, 0.6, 0.4, 0.4]


def test_precision_of_gref_leaves_expressions_without_a_target_out():
    overlaps = [
        Overlap(intersection=0, prediction=0, target=0),
        Overlap(intersection=90, prediction=90, target=100),
        Overlap(intersection=40, prediction=40, target=40),
    ]
    no_target = [True, False, False]
    assert generalized_scores(overlaps, no_target)["p@0.9"] == 1.0
    assert generalized_scores(overlaps, no_target, min_pixels=NO_TARGET_PIXELS)["p@0.9"] == 0.5


def test_n_acc_and_t_acc_are_nan_without_such_expressions():
    one = [Overlap(intersection=60, prediction=60, target=60)]
    assert math.isnan(generalized_scores(one, [False])["n_acc"])
    assert generalized_scores(one, [False])["t_acc"] == 1.0
    assert math.isnan(generalized_scores(one, [True])["t_acc"])
    assert generalized_scores(one, [True])["n_acc"] == 0.0
