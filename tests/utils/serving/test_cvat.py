"""CVAT's auto-annotation function, with the types and the checks of CVAT's SDK."""

from __future__ import annotations

import io
import logging
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import ExifTags, Image

from model.errors import UserError
from tests.commands import REPOSITORY, blocks, complaint
from tests.tiny_weights import noise_image
from utils.serving import cvat
from utils.serving.answers import Asking

cvataa = pytest.importorskip("cvat_sdk.auto_annotation", reason="an optional package")
from cvat_sdk.auto_annotation import driver  # noqa: E402
from cvat_sdk.masks import decode_mask  # noqa: E402

IMAGE = noise_image(40, 60)
LABELS = ["Dog", "traffic light, red", "🐕"]
NAMES = ["dog", "traffic light, red", "🐕"]


def function(tiny, **options) -> cvat.LasagnaFunction:
    return cvat.LasagnaFunction(tiny, LABELS, asking=Asking(presence_threshold=0.0), **options)


def shapes(function, image: Image.Image, *, threshold=None, to_polygons: bool = False) -> list:
    """What the function finds, after the SDK has checked it for a task whose labels may be of any type."""
    context = SimpleNamespace(frame_name="a.png", conf_threshold=threshold, conv_mask_to_poly=to_polygons)
    found = function.detect(context, image)
    task = [
        SimpleNamespace(name=name, id=100 + number, type="any", sublabels=[], attributes=[])
        for number, name in enumerate([*LABELS, "other"])
    ]
    mapper = driver._AnnotationMapper(
        logging.getLogger("cvat"), function.spec.labels, task, allow_unmatched_labels=False,
        conv_mask_to_poly=to_polygons,
    )  # fmt: skip
    return mapper.validate_and_remap(found, 5)[1]


def test_the_labels_are_the_spec(tiny):
    spec = function(tiny).spec
    assert isinstance(spec, cvataa.DetectionFunctionSpec)
    assert [(label.name, label.id, label.type) for label in spec.labels] == [
        ("Dog", 0, "mask"), ("traffic light, red", 1, "mask"), ("🐕", 2, "mask"),
    ]  # fmt: skip


@pytest.mark.parametrize("instances", [False, True])
def test_masks_are_decoded_by_the_sdk(tiny, instances):
    options = {"instances": instances, "min_area": 4 * instances}
    expected = [m for m in tiny.segment(IMAGE, NAMES, presence_threshold=0).found(**options) if m.area]
    found = shapes(function(tiny, **options), Image.fromarray(IMAGE))
    for shape, mask in zip(found, expected, strict=True):
        assert (shape.type.value, shape.frame, shape.source) == ("mask", 5, "auto")
        assert shape.label_id == 100 + NAMES.index(mask.label)
        assert shape.score == pytest.approx(mask.score)
        assert np.array_equal(decode_mask(shape.points, image_width=60, image_height=40), mask.pixels)


def test_boxes_and_polygons_on_request(tiny):
    whole = [m for m in tiny.segment(IMAGE, NAMES, presence_threshold=0).found() if m.area]
    boxes = shapes(function(tiny, shape="rectangle"), Image.fromarray(IMAGE))
    assert [shape.points for shape in boxes] == [
        [x, y, x + width, y + height] for x, y, width, height in (m.box for m in whole)
    ]
    outlines = [outline for mask in whole for outline in mask.polygons]
    for found in (
        shapes(function(tiny, shape="polygon"), Image.fromarray(IMAGE)),
        shapes(function(tiny), Image.fromarray(IMAGE), to_polygons=True),
    ):
        assert [shape.type.value for shape in found] == ["polygon"] * len(outlines)
        assert [shape.points for shape in found] == outlines


def test_only_shapes_from_the_confidence_on(tiny):
    scores = sorted(shape.score for shape in shapes(function(tiny, instances=True), Image.fromarray(IMAGE)))
    least = scores[len(scores) // 2]
    found = shapes(function(tiny, instances=True), Image.fromarray(IMAGE), threshold=least)
    assert sorted(shape.score for shape in found) == [score for score in scores if score >= least]
    assert shapes(function(tiny), Image.fromarray(IMAGE), threshold=1.0) == []


def test_masks_line_up_with_the_turned_image_that_cvat_shows(tiny):
    file, exif = io.BytesIO(), Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.fromarray(IMAGE).save(file, "PNG", exif=exif)
    upright = np.rot90(IMAGE, 3).copy()
    expected = shapes(function(tiny), Image.fromarray(upright))
    found = shapes(function(tiny), Image.open(file))
    assert [shape.points for shape in found] == [shape.points for shape in expected]


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGBA", "P", "1", "I;16"])
def test_images_of_every_mode_are_read(tiny, mode):
    image = Image.new(mode, (30, 20))
    for shape in shapes(function(tiny), image):
        assert decode_mask(shape.points, image_width=30, image_height=20).any()


def test_a_damaged_image_names_its_frame(tiny):
    file = io.BytesIO()
    Image.fromarray(IMAGE).save(file, "PNG")
    broken = Image.open(io.BytesIO(file.getvalue()[:300]))
    with pytest.raises(UserError, match=r"frame a\.png: cannot be decoded"):
        shapes(function(tiny), broken)


# ------------------------------------------------------------------------------------ cvat-cli's parameters


@pytest.fixture
def created(tiny, monkeypatch):
    monkeypatch.setattr(cvat, "load_model", lambda *_, **__: (tiny, tiny.processor))
    return cvat.create


def test_the_parameters_of_the_command_line_make_a_function(created):
    made = created(
        version="any", classes='Dog, "traffic light, red",', shape="rectangle", presence_threshold=0.3,
        instances=True, min_area=5,
    )  # fmt: skip
    assert [label.name for label in made.spec.labels] == ["Dog", "traffic light, red"]
    assert (made.asking.presence_threshold, made.instances, made.min_area) == (0.3, True, 5)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({}, "classes is empty; name labels of the task"),
        ({"classes": " , "}, "classes is empty"),
        ({"classes": "Tree, tree"}, "two of them are one class to the model"),
        ({"classes": "tree, sky, tree"}, "two of them are one class to the model"),
        ({"classes": '"dog'}, "is closed after it"),
        (
            {"classes": "dog", "shape": "ellipse"},
            "shape 'ellipse' is unknown; known: mask, polygon, rectangle",
        ),
        ({"classes": "dog", "model": "x"}, "model is no parameter; known: classes, shape, version"),
        ({"classes": "dog", "presence_threshold": "0.4"}, "has to be float: -p presence_threshold=float:"),
        ({"classes": "dog", "presence_threshold": 2}, "presence_threshold"),
        ({"classes": "dog", "min_area": 5}, "it needs --instances too"),
        ({"classes": "dog", "instances": 1}, "instances is 1, and has to be bool"),
    ],
)
def test_a_wrong_parameter_is_one_line_and_exit_code_2(created, capsys, parameters, message):
    with pytest.raises(SystemExit) as end:
        created(**{"version": "any", **parameters})
    assert end.value.code == 2
    complaint(capsys, "utils.serving.cvat: ", message)


def test_the_example_of_the_documentation_runs(tiny, monkeypatch, capsys):
    monkeypatch.setattr(type(tiny), "from_pretrained", lambda _: tiny)
    (example,) = blocks(REPOSITORY / "docs" / "cvat.md", "python")
    exec(compile(example, "cvat.md", "exec"), {})
    assert capsys.readouterr().out == "['person', 'car']\n"


def test_a_model_that_is_not_there_and_a_missing_package_are_one_line(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        cvat.create(version="nowhere/at/all", classes="dog")
    complaint(capsys, "nowhere/at/all")
    monkeypatch.setitem(sys.modules, "cvat_sdk.auto_annotation", None)
    with pytest.raises(SystemExit):
        cvat.create(version="any", classes="dog")
    complaint(capsys, "pip install 'cvat-sdk[masks]' cvat-cli")
