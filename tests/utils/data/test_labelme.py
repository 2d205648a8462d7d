"""Shapes of labelme: which enclose an area, and which are refused."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from tests.utils.data.layouts import HEIGHT, WIDTH, save_json, write_reason_seg
from utils.data.datasets.reason_seg import ReasonSeg
from utils.data.labelme import IGNORED, TARGET, draw_shapes, read_shapes
from utils.data.types import UnusableItemError


def shape(kind, points, label="target", **more):
    return {"label": label, "shape_type": kind, "points": points, **more}


def label(*shapes):
    return draw_shapes(read_shapes(list(shapes)), HEIGHT, WIDTH)


def box(left, top, right, bottom):
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    mask[top : bottom + 1, left : right + 1] = 1
    return mask


@pytest.mark.parametrize(
    "drawn",
    [
        shape("polygon", [[4, 5], [14, 5], [14, 15], [4, 15]]),
        shape("polygon", [4, 5, 14, 5, 14, 15, 4, 15]),  # flat
        shape("polygon", [{"x": x, "y": y} for x, y in [[4, 5], [14, 5], [14, 15], [4, 15]]]),
        shape("Rectangle", [[4, 5], [14, 15]]),
        shape(None, [[4, 5], [14, 5], [14, 15], [4, 15]]),  # of a version before there were types
        shape("rectangle", [[4, 5], [14, 15]]),
        shape("rectangle", [[14, 15], [4, 5]]),  # dragged from the lower right
        shape("rectangle", [[14.4, 5.3], [4.2, 15.9]]),
        shape("rectangle", [[4, 5], [14, 5], [14, 15], [4, 15]]),  # all corners, as X-AnyLabeling has them
        shape("rotation", [[4, 5], [14, 5], [14, 15], [4, 15]]),
    ],
)
def test_polygons_and_rectangles_cover_their_inside_and_outline(drawn):
    assert np.array_equal(label(drawn), box(4, 5, 14, 15))
    assert np.array_equal(label({**drawn, "label": "Ignore"}), box(4, 5, 14, 15) * IGNORED)


def test_a_circle_is_a_disc_around_its_first_point():
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    distance = np.hypot(x - 16, y - 12)
    disc = label(shape("circle", [[16, 12], [16, 20]]))
    assert (disc[distance < 7.5] == TARGET).all()
    assert not disc[distance > 8.5].any()
    assert label(shape("circle", [[16, 12], [-300, 12]])).all(), "larger than the image"


@pytest.mark.parametrize(("left", "top"), [(4, 5), (-1, -2), (28, 20), (40, 40)])
def test_a_mask_lies_where_its_first_point_says(left, top):
    mask = np.zeros((6, 8), dtype=np.uint8)
    mask[1:5, 2:7] = 255
    file = io.BytesIO()
    Image.fromarray(mask).save(file, "png")
    drawn = shape("mask", [[left, top], [left + 7, top + 5]], mask=base64.b64encode(file.getvalue()).decode())
    canvas = np.zeros((100, 100), dtype=np.uint8)
    canvas[50 + top : 56 + top, 50 + left : 58 + left] = mask > 0
    assert np.array_equal(label(drawn), canvas[50 : 50 + HEIGHT, 50 : 50 + WIDTH])


@pytest.mark.parametrize(
    ("drawn", "message"),
    [
        (
            shape("point", [[4, 5]]),
            r"shape 0 \('target'\) is a point, which encloses no area; draw a polygon",
        ),
        (shape("points", [[4, 5], [6, 7], [8, 3]]), "is a points, which encloses no area"),
        (shape("line", [[4, 5], [9, 9]]), "is a line, which"),
        (shape("linestrip", [[4, 5], [9, 9], [9, 5]]), "is a linestrip, which"),
        (shape("star", [[4, 5], [9, 9], [9, 5]]), "has the shape_type 'star'; known: polygon, "),
        (shape(7, [[4, 5], [9, 9], [9, 5]]), "has the shape_type 7"),
        (shape("rectangle", [[4, 5]]), "is a rectangle of 1 points; it has 2"),
        (shape("circle", [[4, 5], [6, 7], [8, 9]]), "is a circle of 3 points; it has 2"),
        (shape("mask", [[4, 5], [6, 7]]), "'mask' is an image in base64, got None"),
        (shape("mask", [[4, 5], [6, 7]], mask="eA=="), "cannot identify image"),
        (shape("polygon", [{"x": 1, "z": 2}]), "must be pairs of numbers .*, got {'x': 1, 'z': 2}"),
        (shape("polygon", [["1", "2"], [3, 4], [5, 6]]), r"must be pairs of numbers .*, got \['1', '2'\]"),
        (shape("polygon", None), "must be pairs of numbers, got None"),
        (shape("polygon", [[0.1, 0.2], [0.9, 0.2], [0.5, 0.8]]), "between 0 and 1: fractions"),
        (shape("polygon", [[0, 0], [3, 0], [3, 3]], label=None), "'label' is None"),
        ("target", "shape 0 is 'target'; a shape has 'label' and 'points'"),
    ],
)
def test_what_encloses_no_area_is_refused_by_its_type(tmp_path, recipe, drawn, message):
    write_reason_seg(tmp_path, "train", "a", {"text": ["what?"], "is_sentence": True, "shapes": [drawn]})
    with pytest.raises(UnusableItemError, match=message) as caught:
        ReasonSeg(tmp_path, "train").draw(np.random.default_rng(0), recipe)
    assert caught.value.path.endswith("a.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"text": ["a?"], "is_sentence": True, "shapes": None}, "'shapes' is a list, got None"),
        ({"text": ["a?"], "is_sentence": True, "shapes": {}}, "'shapes' is a list, got {}"),
        ({"text": ["a?"], "is_sentence": "no", "shapes": []}, "'is_sentence' is true or false, got 'no'"),
    ],
)
def test_files_of_another_form_are_named(tmp_path, recipe, content, message):
    write_reason_seg(tmp_path, "train", "a", content)
    with pytest.raises(UnusableItemError, match=message):
        ReasonSeg(tmp_path, "train").draw(np.random.default_rng(0), recipe)


def test_explanations_that_are_no_text_are_passed_over_and_a_file_of_another_form_is_named(tmp_path):
    write_reason_seg(tmp_path, "train", "a", {"text": ["a?"], "is_sentence": True, "shapes": []})
    path = tmp_path / "reason_seg/ReasonSeg/explanatory/train.json"
    save_json(path, [{"image": "a.jpg", "outputs": ["no text"]}, {"image": None, "outputs": "text"}])
    assert ReasonSeg(tmp_path, "train").items[0].explanation is None
    save_json(path, ["a.jpg"])
    with pytest.raises(ValueError, match=r"train.json: missing or malformed \(AttributeError"):
        ReasonSeg(tmp_path, "train")
