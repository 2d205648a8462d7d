"""The backend as Label Studio talks to it: tasks in, masks and boxes out, and what goes wrong."""

from __future__ import annotations

import base64
import json
import logging

import numpy as np
import pytest
from PIL import ExifTags, Image

from tests.tiny_weights import noise_image
from tests.utils.serving.running import Running, data_url

brush = pytest.importorskip(
    "label_studio_sdk.converter.brush", reason="Label Studio's converter; tests/requirements-nodeps.txt"
)

IMAGE = noise_image(40, 60)
LABELS = '<Label value="Dog"/><Label value="Traffic Light"/><Label value="🐕 &lt;b&gt;"/>'
NAMES = ["dog", "traffic light", "🐕 <b>"]
ALL = 'model_presence_threshold="0"'  # every class is present


def config(kind: str = "BrushLabels", attributes: str = ALL, labels: str = LABELS) -> str:
    tag = f'<{kind} name="tag" toName="img" {attributes}>{labels}</{kind}>'
    return f'<View><Image name="img" value="$image"/>{tag}</View>'


def request(*images: object, text: str | None = None, field: str = "image") -> dict:
    """What Label Studio sends to /predict."""
    return {
        "tasks": [{"id": 7 + number, "data": {field: image}} for number, image in enumerate(images)],
        "model_version": "tiny",
        "project": "3.1700000000",
        "label_config": config() if text is None else text,
        "params": {"login": None, "password": None, "context": None},
    }


@pytest.fixture(scope="module")
def server(tiny):
    with Running(tiny, max_batch=2) as running:
        yield running


def predict(server, content: dict) -> list[dict]:
    status, body = server.call("/predict", content)
    assert status == 200, body
    return json.loads(body)["results"]


def drawn(region: dict) -> np.ndarray:
    """The mask of a region, as Label Studio's converter reads it: (height, width) bool."""
    [mask] = brush.decode_from_annotation("tag", [{**region, **region["value"]}]).values()
    return mask == 255


def test_a_project_is_connected(server):
    body = {
        "project": "3.1700000000",
        "schema": config(),
        "hostname": "http://localhost:8080",
        "access_token": "x",
    }
    assert json.loads(server.call("/setup", body)[1]) == {"model_version": "tiny"}
    for path, content in (("/versions", None), ("/versions", {"project": "3.17"})):
        assert json.loads(server.call(path, content)[1]) == {"versions": ["tiny"]}
    status, _ = server.call("/webhook", {"action": "ANNOTATION_CREATED", "project": {"id": 3}})
    assert status == 200
    assert server.call("/health")[0] == 200


def test_one_call_fills_an_image_with_a_brush_mask_for_each_class(server, tiny):
    images = [IMAGE, noise_image(30, 50), noise_image(20, 20)]
    predictions = predict(server, request(*map(data_url, images)))
    assert len(predictions) == 3
    for prediction, image in zip(predictions, images, strict=True):
        expected = [mask for mask in tiny.segment(image, NAMES, presence_threshold=0).found() if mask.area]
        regions = prediction["result"]
        assert [region["value"]["brushlabels"] for region in regions] == [
            [{"dog": "Dog", "traffic light": "Traffic Light", "🐕 <b>": "🐕 <b>"}[mask.label]]
            for mask in expected
        ]
        for region, mask in zip(regions, expected, strict=True):
            assert np.array_equal(drawn(region), mask.pixels)
            assert (region["from_name"], region["to_name"], region["type"]) == ("tag", "img", "brushlabels")
            assert (region["original_height"], region["original_width"]) == image.shape[:2]
            assert region["score"] == pytest.approx(mask.score, abs=1e-5)
        assert len({region["id"] for region in regions}) == len(regions)
        assert prediction["score"] == pytest.approx(np.mean([mask.score for mask in expected]), abs=1e-5)
        assert prediction["model_version"] == "tiny"


def test_the_regions_are_what_label_studios_sdk_takes(server):
    pytest.importorskip("lxml")
    interface = pytest.importorskip("label_studio_sdk.label_interface.interface")
    [prediction] = predict(server, request(data_url(IMAGE)))
    assert interface.LabelInterface(config()).validate_prediction(prediction, return_errors=True) == []


def test_boxes_and_instances_on_request(server, tiny):
    attributes = f'{ALL} model_instances="true" model_min_area="4"'
    found = tiny.segment(IMAGE, NAMES, presence_threshold=0)
    for kind in ("BrushLabels", "RectangleLabels"):
        [prediction] = predict(server, request(data_url(IMAGE), text=config(kind, attributes)))
        expected = found.found(instances=True, min_area=4)
        assert len(expected) > 3
        for region, mask in zip(prediction["result"], expected, strict=True):
            if kind == "BrushLabels":
                assert np.array_equal(drawn(region), mask.pixels)
                continue
            value = region["value"]
            box = [
                value["x"] * 0.6,
                value["y"] * 0.4,
                value["width"] * 0.6,
                value["height"] * 0.4,
            ]  # of 60 x 40
            assert box == pytest.approx(mask.box)
            assert value["rectanglelabels"] == [
                {"dog": "Dog", "traffic light": "Traffic Light"}.get(mask.label, "🐕 <b>")
            ]
    whole = config("RectangleLabels", f'{ALL} model_instances="false"')
    [prediction] = predict(server, request(data_url(IMAGE), text=whole))
    assert len(prediction["result"]) == sum(mask.area > 0 for mask in found.found())


def test_absent_classes_and_no_tasks_give_nothing(server):
    nothing = config(attributes='model_presence_threshold="1"')
    assert predict(server, request(data_url(IMAGE), text=nothing)) == [
        {"result": [], "score": 0.0, "model_version": "tiny"}
    ]
    assert predict(server, request()) == []


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_masks_line_up_with_the_turned_image_that_a_browser_shows(server, tiny, orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    url = data_url(Image.fromarray(IMAGE), "PNG", exif=exif)
    upright = np.rot90(IMAGE, {3: 2, 6: 3, 8: 1}[orientation])
    [prediction] = predict(server, request(url))
    expected = [m for m in tiny.segment(upright.copy(), NAMES, presence_threshold=0).found() if m.area]
    assert (
        prediction["result"][0]["original_height"],
        prediction["result"][0]["original_width"],
    ) == upright.shape[:2]
    assert [drawn(region).tobytes() for region in prediction["result"]] == [
        m.pixels.tobytes() for m in expected
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (request(data_url(IMAGE), text="<View/>"), "neither BrushLabels nor RectangleLabels"),
        (request(data_url(IMAGE), text=config(labels='<Label value="A"/><Label value="a"/>')), "both the class 'a'"),
        (request(data_url(IMAGE), field="photo"), "task 7: its data have no image as 'image', which the label config"
         " names; they have photo"),
        (request(["a.png"]), "task 7: its data have no image as 'image'"),
        (request("data:image/png;base64,aGVsbG8="), "task 7: the image: cannot be decoded"),
        (request("/data/upload/3/a.png", "data:,"), "task 7: /data/upload/3/a.png is in Label Studio; say where"),
        (request(*["data:,"] * 5), "and 2 more"),
        (request("http://127.0.0.1/a.png"), "without --allow_urls"),
        (request(data_url(Image.new("1", (1000, 1000)))), "1000 x 1000 pixels, of at most 500,000"),
        ({"tasks": [{"id": 1}], "label_config": config()}, "tasks.0.data: Field required"),
        ({"tasks": []}, "label_config: Field required"),
        ([], "Input should be a valid dictionary"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_and_logged_without_a_traceback(server, content, message, caplog):
    with caplog.at_level(logging.WARNING):
        status, said = server.error("/predict", content)
    assert (status, message in said) == (400, True), said
    assert "Traceback" not in caplog.text
    if "required" not in message and "dictionary" not in message:
        assert message in caplog.text, "Label Studio shows the status alone"


def test_a_damaged_image_keeps_no_other_from_its_prediction(server, caplog):
    urls = [data_url(IMAGE), "data:image/png;base64,aGVsbG8=", data_url(IMAGE)]
    with caplog.at_level(logging.WARNING):
        first, damaged, last = predict(server, request(*urls))
    assert len(first["result"]) == len(last["result"]) > 0
    assert damaged == [], "no prediction is stored, and the task is asked again"
    assert "no prediction for task 8: the image: cannot be decoded" in caplog.text


def test_a_setup_with_a_wrong_config_or_settings_that_would_be_ignored_is_refused(server):
    for body, message in (
        ({"project": "3.17", "schema": "<View></View>"}, "neither BrushLabels nor RectangleLabels"),
        ({"project": "3.17", "schema": config(), "extra_params": '{"x": 1}'}, "extra params are not used"),
        ({"project": "3.17"}, "is no XML"),
    ):
        status, said = server.error("/setup", body)
        assert (status, message in said) == (400, True), said


def test_the_key_may_come_as_a_password(tiny):
    def basic(words: str) -> dict[str, str]:
        return {"Authorization": "Basic " + base64.b64encode(words.encode()).decode()}

    with Running(tiny, api_key="secret") as running:
        assert running.call("/versions", None, basic("any:secret"))[0] == 200
        assert running.call("/versions", None, {"Authorization": "Bearer secret"})[0] == 200
        for headers in (
            basic("secret:any"),
            basic("secret"),
            {"Authorization": "Basic %%%"},
            {"Authorization": "secret"},
            {},
        ):
            status, said = running.error("/versions", None, headers)
            assert (status, "the key is missing or wrong" in said) == (401, True)
