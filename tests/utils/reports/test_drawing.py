"""Pictures: what is coloured, what is not, and that everything fits."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from utils.common.label_values import IGNORE, UNCLAIMED
from utils.reports.colours import class_colour, palette
from utils.reports.curves import read_curves, running_mean, save_curves
from utils.reports.drawing import LegendEntry, annotate, outline, overlay, resize_labels
from utils.reports.sheet import draw_sheet, mask_row, semantic_row

CLASSES = ("sky", "grass", "person", "awning, sunshade, sunblind made of a very long name")


@pytest.fixture
def scene() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image, truth with an ignored corner, prediction with an unclaimed band."""
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    truth = np.zeros((40, 60), dtype=np.uint16)
    truth[20:], truth[10:30, 20:30], truth[:4, :4] = 1, 2, IGNORE
    prediction = truth.astype(np.int16)
    prediction[truth == IGNORE] = 0
    prediction[15:18] = UNCLAIMED
    return image, truth, prediction


def test_a_class_has_the_same_colour_in_every_list():
    assert tuple(palette(["sky", "flag"])[1]) == tuple(palette(["a", "b", "flag"])[2]) == class_colour("flag")
    names = [f"class {k}" for k in range(150)]
    assert len({class_colour(name) for name in names}) > 120
    assert palette([]).shape == (0, 3)


def test_overlay_tints_known_classes_and_darkens_the_rest(scene):
    image, truth, _ = scene
    colours = palette(CLASSES)
    picture = overlay(image, truth, colours, alpha=0.6)
    assert picture.shape == image.shape
    assert picture.dtype == np.uint8
    inside = (truth == 1) & ~outline(truth)
    expected = 0.4 * image[inside] + 0.6 * colours[1]
    assert np.abs(picture[inside] - expected).max() <= 0.5 + 1e-9
    ignored = (truth == IGNORE) & ~outline(truth)
    assert picture[ignored].mean() < 0.6 * image[ignored].mean()
    assert (overlay(image, np.full((40, 60), UNCLAIMED), colours) <= image.max(axis=2, keepdims=True)).all()


def test_outline_lies_exactly_where_a_region_touches_another(scene):
    _, truth, _ = scene
    # A pixel is on the border when the largest and smallest label of itself, right and below differ.
    window = np.array([[0, 0, 0], [0, 1, 1], [0, 1, 0]], dtype=bool)
    highest = ndimage.maximum_filter(truth, footprint=window, mode="nearest")
    lowest = ndimage.minimum_filter(truth, footprint=window, mode="nearest")
    np.testing.assert_array_equal(outline(truth), highest != lowest)


def test_resized_labels_hold_only_ids_that_were_there(scene):
    _, truth, _ = scene
    larger = resize_labels(truth, (97, 131))
    assert larger.shape == (97, 131)
    assert set(np.unique(larger)) == set(np.unique(truth))
    np.testing.assert_array_equal(resize_labels(np.repeat(truth, 3, axis=0), (40, 60)), truth)


def test_the_legend_of_a_scene_lists_its_classes_with_their_iou_the_largest_first(scene):
    image, truth, prediction = scene
    truth[:8] = 3  # not in the prediction
    truth[truth == 2], prediction[30] = 1, 2  # only in the prediction
    row = semantic_row(image, truth, prediction, CLASSES, np.array([0.8, 0.9, 0.0, 0.0]))
    assert [(entry.name, entry.note) for entry in row.legend] == [
        ("grass", "0.90"),
        ("sky", "0.80"),
        (CLASSES[3], "missed"),
        ("person", "invented"),
    ]
    assert all(entry.colour == class_colour(entry.name) for entry in row.legend)


def test_a_sheet_of_eight_scenes_has_two_blocks_and_shows_their_colours(scene):
    image, truth, prediction = scene
    row = semantic_row(image, truth, prediction, CLASSES, np.array([0.8, 0.9, 0.5, np.nan]))
    sheet = draw_sheet([row] * 8, title="Held-out scenes", cell=160)
    four = draw_sheet([row] * 4, title="Held-out scenes", cell=160)
    assert sheet.height == four.height
    assert sheet.width == 2 * four.width
    seen = {colour for _, colour in sheet.getcolors(maxcolors=2**24)}
    assert {class_colour(name) for name in ("sky", "grass", "person")} <= seen


def test_pictures_of_other_shapes_fit_into_the_same_sheet(scene):
    image, truth, prediction = scene
    wide = semantic_row(image, truth, prediction, CLASSES, np.full(4, np.nan))
    tall = mask_row(
        image.transpose(1, 0, 2).copy(),
        truth.T == 1,
        truth.T == 2,
        question="what? " * 60,
        answer="",
        iou=0.5,
    )
    sheet = draw_sheet([wide, tall], cell=100)
    assert sheet.height < (67 + 8) + (100 + 8) + 80
    with pytest.raises(ValueError, match="at least one row"):
        draw_sheet([])


def test_an_annotated_picture_has_its_legend_at_the_right(scene):
    image, truth, _ = scene
    entries = [LegendEntry(name=name, colour=class_colour(name)) for name in CLASSES]
    picture = annotate(
        image, truth, palette(CLASSES), [*entries, LegendEntry(name="not in the image: dog", pale=True)]
    )
    assert isinstance(picture, Image.Image)
    assert picture.size == (480 + 200, 320)
    right = np.asarray(picture)[:, 480:]
    assert (right == class_colour("sky")).all(axis=2).any()


def test_curves_are_written_and_nothing_to_draw_is_an_error(tmp_path):
    path = tmp_path / "new" / "loss.png"
    save_curves(
        {"total": [(step, 1 / (step + 1)) for step in range(50)], "dice": [(3, 0.5)], "none": []}, path
    )
    with Image.open(path) as picture:
        assert picture.width > picture.height
    with pytest.raises(ValueError, match="was anything logged"):
        save_curves({"none": []}, path)


def test_curves_of_a_resumed_run_hold_each_step_once(tmp_path):
    path = tmp_path / "losses.jsonl"
    lines = [(1, 5.0), (2, 4.0), (3, 9.0), (2, 4.5), (3, 3.0)]
    path.write_text("".join(f'{{"step": {step}, "total": {value}, "lr": 1}}\n' for step, value in lines))
    assert read_curves(path, ["total", "dice"]) == {"total": [(1, 5.0), (2, 4.5), (3, 3.0)], "dice": []}


def test_running_mean_equals_a_plain_loop():
    values = np.random.default_rng(0).random(17)
    expected = [values[max(k - 3, 0) : k + 4].mean() for k in range(17)]
    np.testing.assert_allclose(running_mean(values, 3), expected)
