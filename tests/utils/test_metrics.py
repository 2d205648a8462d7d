"""The numbers against hand-made tables, torchmetrics, and the outputs of the released evaluation."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from utils.data.types import IGNORE
from utils.metrics import (
    NO_TARGET_PIXELS,
    UNCLAIMED,
    ConfusionMatrix,
    ExactMatch,
    Overlap,
    PresenceCounts,
    balanced_pairs,
    generalized_scores,
    label_map,
    mask_scores,
    overlap,
)


def slow_label_map(logits: np.ndarray, class_ids: list[int]) -> np.ndarray:
    """One pixel at a time, the definition read aloud."""
    _, height, width = logits.shape
    result = np.full((height, width), UNCLAIMED)
    for row in range(height):
        for column in range(width):
            values = logits[:, row, column]
            if values.max() > 0:
                result[row, column] = class_ids[int(values.argmax())]
    return result


# --------------------------------------------------------------------------------------- label maps


@pytest.mark.parametrize("num_masks", [1, 2, 7])
def test_label_map_equals_a_slow_per_pixel_reference(num_masks):
    generator = torch.Generator().manual_seed(num_masks)
    logits = (
        torch.randn(num_masks, 9, 13, generator=generator).mul(2).round()
    )  # rounding makes ties and zeros
    class_ids = [(7 * k) % 5 for k in range(num_masks)]
    np.testing.assert_array_equal(label_map(logits, class_ids), slow_label_map(logits.numpy(), class_ids))


def test_label_map_without_masks_claims_nothing_and_leaves_its_input_alone():
    assert (label_map(torch.zeros(0, 3, 4), []) == UNCLAIMED).all()
    logits = torch.randn(3, 4, 5)
    before = logits.clone()
    label_map(logits, [2, 0, 1])
    assert torch.equal(logits, before)


def test_a_class_named_twice_gets_the_union_of_its_masks():
    logits = torch.tensor([[[3.0, -1.0, -1.0]], [[-1.0, 2.0, -1.0]], [[1.0, 1.0, 1.0]]])
    assert label_map(logits, [4, 4, 0]).tolist() == [[4, 4, 0]]


def test_label_map_refuses_masks_and_classes_of_different_number():
    with pytest.raises(ValueError, match="2 masks but 1 class ids"):
        label_map(torch.zeros(2, 3, 3), [1])


def test_confusion_by_hand_with_ignored_and_unclaimed_pixels():
    truth = np.array([[0, 0, 0, 1], [1, 2, IGNORE, IGNORE]])
    prediction = np.array([[0, 1, UNCLAIMED, 1], [UNCLAIMED, 1, 2, UNCLAIMED]])
    matrix = ConfusionMatrix(4)
    matrix.add(truth, prediction)
    assert matrix.counts.tolist() == [[1, 1, 0, 0, 1], [0, 1, 0, 0, 1], [0, 1, 0, 0, 0], [0, 0, 0, 0, 0]]
    # class 0: 1 of 3, one taken by class 1 and one unclaimed; class 1: 1 of 2 true and 2 false pixels;
    # class 2: 0 of 1; class 3 does not occur
    np.testing.assert_allclose(matrix.iou(), [1 / 3, 1 / 4, 0, math.nan])
    summary = matrix.summary()
    assert summary["miou"] == pytest.approx((1 / 3 + 1 / 4 + 0) / 3)
    assert summary["pixel_accuracy"] == pytest.approx(2 / 6)
    assert summary["mean_accuracy"] == pytest.approx((1 / 3 + 1 / 2 + 0) / 3)
    assert summary["num_classes_counted"] == 3


def test_mean_iou_equals_torchmetrics_with_ignored_and_unclaimed_pixels():
    from torchmetrics.classification import MulticlassJaccardIndex

    # An unclaimed pixel is one more class there; that class is then left out of the mean.
    num_classes = 6
    theirs = MulticlassJaccardIndex(num_classes + 1, average="none", ignore_index=IGNORE)
    ours = ConfusionMatrix(num_classes)
    rng = np.random.default_rng(0)
    for _ in range(5):
        truth = rng.choice([0, 1, 2, 3, IGNORE], size=(17, 23))  # class 4 is only predicted, class 5 nowhere
        prediction = rng.choice([0, 1, 2, 3, 4, UNCLAIMED], size=(17, 23))
        ours.add(truth, prediction)
        with_extra_class = np.where(prediction == UNCLAIMED, num_classes, prediction)
        theirs.update(torch.from_numpy(with_extra_class), torch.from_numpy(truth))
    expected = theirs.compute().numpy()[:5]
    np.testing.assert_allclose(ours.iou()[:5], expected, atol=1e-6)
    assert ours.summary()["miou"] == pytest.approx(float(expected.mean()), abs=1e-6)
    assert math.isnan(ours.iou()[5])


def test_two_halves_merged_equal_the_whole():
    rng = np.random.default_rng(1)
    images = [(rng.integers(0, 3, (8, 8)), rng.integers(-1, 3, (8, 8))) for _ in range(5)]
    whole, first, second = ConfusionMatrix(3), ConfusionMatrix(3), ConfusionMatrix(3)
    for index, (truth, prediction) in enumerate(images):
        whole.add(truth, prediction)
        (first if index % 2 else second).add(truth, prediction)
    first.merge(second.counts)
    np.testing.assert_array_equal(first.counts, whole.counts)


def test_labels_of_another_class_list_are_refused():
    with pytest.raises(ValueError, match="wrong class list"):
        ConfusionMatrix(2).add(np.array([[2]]), np.array([[0]]))
    with pytest.raises(ValueError, match="predict at the label's size"):
        ConfusionMatrix(2).add(np.zeros((2, 2)), np.zeros((2, 3)))


def test_iou_per_class_equals_the_released_evaluation(golden):
    arrays = np.load(golden / "metrics.npz")
    expected = json.loads((golden / "metrics.json").read_text())
    matrix = ConfusionMatrix(5)
    for truth, prediction in zip(arrays["conf5_gt"], arrays["conf5_pred"], strict=True):
        matrix.add(truth, prediction)
    np.testing.assert_array_equal(matrix.counts[:, :5], arrays["conf5"])
    np.testing.assert_allclose(matrix.iou(), arrays["conf5_iou"], rtol=1e-6)
    assert matrix.summary()["miou"] == pytest.approx(expected["conf5_miou"])


# -------------------------------------------------------------------------------------- binary masks


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
    assert math.isnan(ConfusionMatrix(3).summary()["miou"])
    assert math.isnan(ExactMatch().summary()["exact_match"])


def test_giou_and_ciou_equal_the_released_evaluation(golden):
    arrays = np.load(golden / "metrics.npz")
    giou, ciou = json.loads((golden / "metrics.json").read_text())["giou_ciou"]
    samples = [
        overlap(logits > 0, truth == 1, truth == IGNORE)
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


# ----------------------------------------------------------------------------------------- presence


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


# --------------------------------------------------------------------------------------------- text


@pytest.mark.parametrize(
    ("answer", "expected", "equal"),
    [
        ("Two.", "two", True),
        ("The ball is red", "ball is  red!", True),
        ("a red ball", "red balls", False),
        ("", "yes", False),
    ],
)
def test_exact_match_ignores_case_articles_and_punctuation(answer, expected, equal):
    assert ExactMatch().add(answer, expected) is equal
