"""Label maps and confusion matrices against slow references, other people's code and the released evaluation."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from utils.common.label_values import IGNORE, NOTHING, UNCLAIMED
from utils.evaluation.metrics import ConfusionMatrix, label_map, labels


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
    expected = [[1, 1, 0, 0, 1], [0, 1, 0, 0, 1], [0, 1, 0, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]]
    assert matrix.counts.tolist() == expected
    # class 0: 1 of 3, one taken by class 1 and one unclaimed; class 1: 1 of 2 true and 2 false pixels;
    # class 2: 0 of 1; class 3 does not occur
    np.testing.assert_allclose(matrix.iou(), [1 / 3, 1 / 4, 0, math.nan])
    summary = matrix.summary()
    assert summary["miou"] == pytest.approx((1 / 3 + 1 / 4 + 0) / 3)
    assert summary["pixel_accuracy"] == pytest.approx(2 / 6)
    assert summary["mean_accuracy"] == pytest.approx((1 / 3 + 1 / 2 + 0) / 3)
    assert summary["num_classes_counted"] == 3


def test_a_mask_where_no_class_is_counts_against_its_class():
    truth = np.array([[0, 0, NOTHING, NOTHING, NOTHING]], dtype=np.uint16)
    matrix = ConfusionMatrix(2)
    matrix.add(truth, np.array([[0, UNCLAIMED, 0, 1, UNCLAIMED]]))
    assert matrix.counts.tolist() == [[1, 0, 1], [0, 0, 0], [1, 1, 1]]
    # class 0: 1 hit of 2 true and 2 predicted pixels; class 1 is only predicted, where nothing is
    np.testing.assert_allclose(matrix.iou(), [1 / 3, 0])
    assert matrix.summary()["pixel_accuracy"] == pytest.approx(1 / 2)


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


def test_iou_per_class_equals_the_released_evaluation(golden_part):
    arrays = np.load(golden_part / "metrics.npz")
    expected = json.loads((golden_part / "metrics.json").read_text())
    matrix = ConfusionMatrix(5)
    for truth, prediction in zip(arrays["conf5_gt"], arrays["conf5_pred"], strict=True):
        matrix.add(truth, prediction)
    np.testing.assert_array_equal(matrix.counts[:5, :5], arrays["conf5"])
    np.testing.assert_allclose(matrix.iou(), arrays["conf5_iou"], rtol=1e-6)
    assert matrix.summary()["miou"] == pytest.approx(expected["conf5_miou"])


# ------------------------------------------------------------------------- against other people's code


@pytest.mark.parametrize("num_masks", [1, 3, 40, 300])
def test_masks_become_the_same_map_in_blocks_on_a_device_and_pixel_by_pixel(num_masks, monkeypatch):
    monkeypatch.setattr(labels, "BLOCK_PIXELS", 50)  # blocks of three rows, the last one shorter
    rng = np.random.default_rng(num_masks)
    logits = rng.normal(0, 2, (num_masks, 11, 13)).round(1).astype(np.float32)
    class_ids = rng.integers(0, 459, num_masks).tolist()
    expected = slow_label_map(logits, class_ids)
    np.testing.assert_array_equal(label_map(torch.from_numpy(logits), class_ids), expected)
    np.testing.assert_array_equal(labels._owners_on_device(torch.from_numpy(logits), class_ids), expected)
    assert label_map(torch.from_numpy(logits), class_ids).dtype == np.int16


def test_half_precision_masks_are_compared_by_their_values():
    logits = torch.randn(4, 6, 7).to(torch.bfloat16)
    expected = slow_label_map(logits.float().numpy(), [3, 1, 2, 0])
    np.testing.assert_array_equal(label_map(logits, [3, 1, 2, 0]), expected)


@pytest.mark.parametrize("num_classes", [1, 19, 150, 254, 255, 459])
def test_counts_equal_a_slow_reference_for_every_kind_of_pixel(num_classes):
    rng = np.random.default_rng(num_classes)
    truth = rng.integers(0, num_classes, (20, 30)).astype(np.uint16)
    truth[rng.random(truth.shape) < 0.2] = IGNORE
    truth[rng.random(truth.shape) < 0.2] = NOTHING
    prediction = rng.integers(-1, num_classes, truth.shape).astype(np.int16)
    expected = np.zeros((num_classes + 1, num_classes + 1), dtype=int)
    for true, said in zip(truth.ravel().tolist(), prediction.ravel().tolist(), strict=True):
        if true != IGNORE:
            expected[num_classes if true == NOTHING else true, num_classes if said == -1 else said] += 1
    matrix = ConfusionMatrix(num_classes)
    matrix.add(truth, prediction)
    np.testing.assert_array_equal(matrix.counts, expected)
    wide = ConfusionMatrix(num_classes)
    wide.add(truth.astype(np.int64), prediction.astype(np.int32))
    np.testing.assert_array_equal(wide.counts, expected)
    again = ConfusionMatrix(num_classes)
    again.add_cells(*matrix.cells())
    np.testing.assert_array_equal(again.counts, expected)


@pytest.mark.parametrize(
    ("truth", "prediction", "message"),
    [
        (np.uint16([[3]]), np.int16([[0]]), "truth holds class ids 3..3, outside 0..2"),
        (np.int64([[-1]]), np.int16([[0]]), "truth holds class ids -1..-1"),
        (np.int64([[70000]]), np.int16([[0]]), "truth holds class ids 70000..70000"),
        (np.uint16([[0]]), np.int16([[3]]), "prediction holds class ids 3..3"),
        (np.uint16([[0]]), np.int16([[-2]]), "prediction holds class ids"),
        (np.uint16([[0]]), np.int64([[65535]]), "prediction holds class ids 65535..65535"),
    ],
)
def test_ids_outside_the_class_list_are_refused_in_any_type(truth, prediction, message):
    with pytest.raises(ValueError, match=message):
        ConfusionMatrix(3).add(truth, prediction)


def test_every_number_equals_cityscapesscripts_run_on_png_files(tmp_path):
    from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as official
    from cityscapesscripts.helpers.labels import labels as official_labels

    trained = sorted((label for label in official_labels if not label.ignoreInEval), key=lambda l: l.trainId)
    ids = np.array([label.id for label in trained])
    ignored = [label.id for label in official_labels if label.ignoreInEval and label.id >= 0]
    rng = np.random.default_rng(5)
    ours = ConfusionMatrix(len(ids))
    true_files, predicted_files = [], []
    for number in range(4):
        # Class 18 is nowhere, class 17 only predicted; id 0, "unlabeled", stands for what no mask claims.
        truth = rng.integers(-1, 17, (24, 40))
        prediction = rng.integers(-1, 18, (24, 40))
        ours.add(np.where(truth < 0, IGNORE, truth).astype(np.uint16), prediction.astype(np.int16))
        truth_ids = np.where(truth < 0, rng.choice(ignored, truth.shape), ids[truth])
        for files, name, pixels in (
            (true_files, "gt", truth_ids),
            (predicted_files, "pred", np.where(prediction < 0, 0, ids[prediction])),
        ):
            files.append(str(tmp_path / f"{name}{number}.png"))
            Image.fromarray(pixels.astype(np.uint8)).save(files[-1])
    arguments = official.CArgs()
    vars(arguments).update(
        vars(official.args), quiet=True, JSONOutput=False, evalInstLevelScore=False, evalLabels=[]
    )
    theirs = official.evaluateImgLists(predicted_files, true_files, arguments)
    expected = [theirs["classScores"][label.name] for label in trained]
    np.testing.assert_allclose(ours.iou(), expected, atol=1e-6)
    assert ours.summary()["miou"] == pytest.approx(theirs["averageScoreClasses"], abs=1e-6)
    assert math.isnan(expected[18])
    assert expected[17] == 0


@pytest.mark.parametrize("seed", range(3))
def test_accuracies_equal_torchmetrics_and_scikit_learn(seed):
    from sklearn.metrics import balanced_accuracy_score
    from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

    rng = np.random.default_rng(seed)
    truth = rng.choice([0, 1, 2, 4, IGNORE], (31, 17))
    prediction = rng.choice([0, 1, 2, 3, 4, UNCLAIMED], truth.shape)  # 3 only predicted, 5 nowhere
    matrix = ConfusionMatrix(6)
    matrix.add(truth.astype(np.uint16), prediction.astype(np.int16))
    summary = matrix.summary()
    said, true = torch.from_numpy(np.where(prediction < 0, 6, prediction)), torch.from_numpy(truth)
    pixel = MulticlassAccuracy(7, average="micro", ignore_index=IGNORE)(said, true)
    assert summary["pixel_accuracy"] == pytest.approx(float(pixel), abs=1e-6)
    iou = MulticlassJaccardIndex(7, average="none", ignore_index=IGNORE)(said, true)[:5]
    assert summary["miou"] == pytest.approx(float(iou.mean()), abs=1e-6)
    judged = truth != IGNORE
    with pytest.warns(UserWarning, match="y_pred contains classes not in y_true"):
        mean = balanced_accuracy_score(truth[judged], said.numpy()[judged])
    assert summary["mean_accuracy"] == pytest.approx(mean, abs=1e-6)


def test_a_matrix_without_pixels_has_no_mean():
    assert all(math.isnan(value) for value in list(ConfusionMatrix(3).summary().values())[:3])
