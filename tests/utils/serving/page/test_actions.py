"""The page without a browser: what its buttons do and show, and the files that it offers."""

from __future__ import annotations

import asyncio
import io
import json
import threading
import zipfile

import numpy as np
import pytest
from PIL import ExifTags, Image
from pydantic import TypeAdapter

from model.text.conversation import Conversation
from model.text.special_tokens import NEG, SEG, Special
from tests.tiny_weights import noise_image
from utils.data.image_formats import FORMATS
from utils.reports.colours import class_colour
from utils.serving import jobs
from utils.serving.answers import Asking
from utils.serving.batching import Batcher
from utils.serving.files import draw
from utils.serving.page import visits
from utils.serving.page.actions import Actions
from utils.serving.page.view import DIM, TINT, file_of
from utils.serving.schema import AnswerJson

IMAGE = noise_image(40, 60)
KNOWN = ", ".join(FORMATS)
NAMES = ["dog", "traffic light, red", 'a "quoted" name', "🐕", "<b>bold</b>", "[seg]", "</s>", "x'y"]


def file_with(image: np.ndarray | Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, kind, **options)
    return file.getvalue()


@pytest.fixture(scope="module")
def batcher(tiny):
    batcher = Batcher(tiny, max_batch=4, max_waiting=4)
    yield batcher
    batcher.close()


@pytest.fixture
def actions(batcher):
    return Actions(Asking(max_new_tokens=40), batcher, max_pixels=500_000)


def shown_by(steps):
    """Everything that an action shows, one after the other."""

    async def all_of():
        return [shown async for shown in steps]

    return asyncio.run(all_of())


def visit_of(actions, visitor="a", image=IMAGE):
    actions.open(visitor, file_with(image), "street.png")
    return actions.visits.of(visitor)


def image_in(visit, name):
    return Image.open(io.BytesIO(file_of(visit, name)))


# ------------------------------------------------------------------------------------ answers


def test_an_answer_in_words_comes_in_parts_and_ends_with_chips(actions, says):
    says("The dog ", Special(SEG), ", not the cat ", Special(NEG), ", is there.")
    visit = visit_of(actions)
    steps = shown_by(actions.ask("a", " Where is the dog, not the cat? "))
    assert len(steps) > 4
    assert all(step.view is None for step in steps[:-1])
    assert "Where is the dog, not the cat?" in steps[0].talk
    assert "The dog [SEG], not the cat [NEG], is there." in steps[-1].talk
    assert 'data-layer="1"' in steps[-1].view
    assert "The dog" in steps[-1].view
    assert 'chip absent" title="not in the image">not the cat<' in steps[-1].view
    assert not steps[-1].can_decide
    assert f"{visit.place}/overlay.png" in steps[-1].view


def test_a_class_query_has_a_chip_for_each_class_in_the_colour_of_its_mask(actions, tiny):
    visit = visit_of(actions)
    [*_, last] = shown_by(actions.segment("a", 'dog, "traffic light, red"'))
    found = tiny.segment(IMAGE, ["dog", "traffic light, red"])
    assert [one.label for one in visit.answer.classes] == ["dog", "traffic light, red"]
    assert list(visit.answer.names) == list(found.present_names)
    for number, name in enumerate(found.present_names, start=1):
        red, green, blue = class_colour(name)
        assert f'data-layer="{number}" style="--colour: rgb({red}, {green}, {blue})"' in last.view
        drawn = np.asarray(image_in(visit, f"mask_{number}.png").convert("RGBA"))
        inside = (found.masks[number - 1] > 0).numpy()
        assert (drawn[inside] == (red, green, blue, TINT)).all()
        assert (drawn[~inside] == DIM).all()
    assert last.can_decide
    assert last.threshold == 0.5


def test_names_are_text_on_the_page_and_no_markup(actions):
    visit = visit_of(actions)
    [*_, last] = shown_by(actions.segment("a", ", ".join('"' + n.replace('"', '""') + '"' for n in NAMES)))
    assert [one.label for one in visit.answer.classes] == NAMES
    for html in (last.view, last.talk):
        assert "<b>" not in html
        assert "&lt;b&gt;bold&lt;/b&gt;" in html
        assert "&lt;/s&gt;" in html
        assert "🐕" in html
    [*_, last] = shown_by(actions.ask("a", "<img src=x onerror=alert(1)> [SEG] </s>"))
    assert "<img src=x" not in last.talk
    assert "&lt;img src=x onerror=alert(1)&gt; [SEG] &lt;/s&gt;" in last.talk
    seg = actions.batcher.model.processor.token_ids.seg
    asked = Conversation(visit.session.answers[-1].turns[:1])
    assert seg not in actions.batcher.model.processor.encode(asked).input_ids


def test_500_classes_are_asked_in_parts_and_all_shown(actions):
    visit = visit_of(actions, image=noise_image(8, 8))
    [*_, last] = shown_by(actions.segment("a", ", ".join(f"thing {number}" for number in range(500))))
    assert len(visit.answer.classes) == 500
    assert last.view.count('class="chip ') == 500


def test_the_slider_decides_again_without_asking_the_language_model(actions, tiny, monkeypatch):
    visit = visit_of(actions)
    shown_by(actions.segment("a", "dog, tree, sky"))
    expected = {t: tiny.segment(IMAGE, ["dog", "tree", "sky"], rethreshold=t) for t in (0.0, 0.4, 1.0)}
    for name in ("segment_batch", "generate_batch", "encode_batch"):
        monkeypatch.setattr(type(tiny), name, lambda *_, **__: pytest.fail("the model was asked"))
    for threshold, found in expected.items():
        place = visit.place
        shown = actions.decide("a", threshold)
        assert place not in shown.view
        assert visit.answer.names == found.present_names
        assert (visit.answer.masks > 0).equal(found.masks > 0)
        content = json.loads(file_of(visit, "answer.json"))
        assert content["threshold"] == threshold
        assert [one["present"] for one in content["classes"]] == found.present
    assert "out of range" not in shown.talk
    assert "is a probability" in actions.decide("a", 2).talk


def test_each_visitor_has_a_conversation_of_their_own(actions, says):
    says("It is ", Special(SEG), ".")
    first, second = visit_of(actions, "a"), visit_of(actions, "b", noise_image(30, 30))
    shown_by(actions.ask("a", "Where is the dog?"))
    [*_, last] = shown_by(actions.ask("b", "Where is the cat?"))
    shown_by(actions.ask("a", "Which one?"))
    assert "dog" not in last.talk
    assert len(first.session.history) == 4
    assert len(second.session.history) == 2
    assert first.key != second.key
    assert actions.visits.find(first.key, first.number) is first
    assert actions.visits.find(first.key, first.number - 1) is None
    assert actions.visits.find(second.key + "ä", 1) is None
    assert len(first.session.answers[0].masks) == 0, "only the last answer keeps its masks"
    shown = actions.restart("a")
    assert "Where is" not in shown.talk
    assert first.session.image is not None


def test_an_answer_can_be_stopped_and_is_no_part_of_the_conversation_then(actions, tiny, monkeypatch):
    visit, begun, may_end = visit_of(actions), threading.Event(), threading.Event()

    def waits(self, *_, **__):
        begun.set()
        may_end.wait(20)
        raise RuntimeError("nobody waits for this")

    monkeypatch.setattr(type(tiny), "generate_batch", waits)

    async def stop_when_begun():
        steps = []
        async for shown in actions.ask("a", "What?"):
            steps.append(shown)
            if len(steps) == 1:
                await asyncio.to_thread(begun.wait, 20)
                [busy] = [shown async for shown in actions.ask("a", "And?")][-1:]
                assert "an answer is under way" in busy.talk
                assert "an answer is under way" in actions.decide("a", 0.3).talk
                actions.stop("a")
        return steps

    last = asyncio.run(stop_when_begun())[-1]
    may_end.set()
    assert "stopped" in last.talk
    assert "What?" not in last.talk
    assert not visit.session.answers


def test_a_full_queue_and_a_failure_are_said(actions, tiny, monkeypatch):
    visit_of(actions)
    monkeypatch.setattr(actions.batcher, "max_waiting", 0)
    assert "0 requests wait already; ask again later" in shown_by(actions.ask("a", "What?"))[-1].talk
    monkeypatch.undo()
    monkeypatch.setattr(type(tiny), "generate_batch", lambda *_, **__: 1 / 0)
    last = shown_by(actions.ask("a", "What?"))[-1].talk
    assert "the server failed; its log has the reason" in last
    assert "division" not in last


def test_who_came_longest_ago_is_forgotten_when_there_are_too_many_pixels(actions, monkeypatch):
    monkeypatch.setattr(visits, "MAX_KEPT_BYTES", 2 * IMAGE.nbytes)
    first = visit_of(actions, "a")
    for visitor in "bc":
        visit_of(actions, visitor)
    assert actions.visits.find(first.key, first.number) is None
    assert "it had to make room for those of others" in shown_by(actions.ask("a", "What?"))[-1].talk
    second = actions.visits.of("c")
    actions.leave("c")
    assert actions.visits.find(second.key, second.number) is None


# ------------------------------------------------------------------------------------ files


def test_overlay_masks_and_json_can_be_downloaded(actions):
    visit = visit_of(actions)
    assert file_of(visit, "overlay.png") is None, "nothing was asked yet"
    shown_by(actions.segment("a", "dog, traffic light"))
    actions.decide("a", 0)
    expected = draw(visit.answer, IMAGE)
    assert np.array_equal(np.asarray(image_in(visit, "overlay.png")), np.asarray(expected))
    content = json.loads(file_of(visit, "answer.json"))
    TypeAdapter(AnswerJson).validate_python(content, strict=True, extra="forbid")
    assert content["image"] == {"file": "street.png", "height": 40, "width": 60}
    with zipfile.ZipFile(io.BytesIO(file_of(visit, "masks.zip"))) as archive:
        assert archive.namelist() == ["mask_1_dog.png", "mask_2_traffic_light.png"]
        for name, logits in zip(archive.namelist(), visit.answer.masks, strict=True):
            pixels = np.asarray(Image.open(io.BytesIO(archive.read(name))))
            assert np.array_equal(pixels, (logits > 0).numpy() * np.uint8(255))
    for name in ("mask_0.png", "mask_3.png", "mask_-1.png", "../x", "", "nothing.png"):
        assert file_of(visit, name) is None


# ------------------------------------------------------------------------------------ images


def turned() -> dict[str, Image.Exif]:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    return {"exif": exif}


@pytest.mark.parametrize(
    ("image", "kind", "options", "size"),
    [
        (Image.new("RGB", (1, 1)), "PNG", {}, (1, 1)),
        (Image.new("CMYK", (30, 20), (0, 255, 255, 0)), "JPEG", {}, (30, 20)),
        (Image.new("L", (30, 20), 90), "PNG", {}, (30, 20)),
        (Image.fromarray(np.full((20, 30), 40_000, np.uint16)), "PNG", {}, (30, 20)),
        (Image.new("RGBA", (30, 20), (255, 0, 0, 128)), "PNG", {}, (30, 20)),
        (Image.new("RGB", (30, 20), (0, 90, 0)), "JPEG", turned(), (20, 30)),
        (Image.new("P", (30, 20)), "GIF", {}, (30, 20)),
    ],
)
def test_masks_lie_over_the_image_as_it_is_shown(actions, image, kind, options, size):
    actions.open("a", file_with(image, kind, **options), f"a.{kind.lower()}")
    shown_by(actions.segment("a", "dog"))
    [*_] = [actions.decide("a", 0)]
    visit = actions.visits.of("a")
    for name in ("image.jpg", "overlay.jpg", "mask_1.png"):
        assert image_in(visit, name).size == size
    expected = np.asarray(visit.session.image, dtype=int)
    assert abs(np.asarray(image_in(visit, "image.jpg"), dtype=int) - expected).max() < 8
    assert visit.answer.masks.shape[1:] == size[::-1]


def test_large_images_are_shown_smaller_and_answered_whole(actions, monkeypatch):
    monkeypatch.setattr("utils.serving.page.view.VIEW_SIDE", 30)
    visit = visit_of(actions)
    shown_by(actions.segment("a", "dog"))
    actions.decide("a", 0)
    assert {image_in(visit, name).size for name in ("image.jpg", "overlay.jpg", "mask_1.png")} == {(30, 20)}
    assert json.loads(file_of(visit, "answer.json"))["masks"][0]["rle"]["size"] == [40, 60]


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (b"a text", "notes.png", f"notes.png: cannot be decoded (the file is not an image of {KNOWN})"),
        (b"", "empty.jpg", "the file is empty"),
        (b"<svg xmlns='x'><script>1</script></svg>", "a.svg", "the file is XML or SVG; save it as PNG"),
        (file_with(Image.new("1", (20_000, 20_000))), "b.png", "400,000,000 pixels, of at most 500,000"),
        (file_with(IMAGE)[:200], "<b>.png", "&lt;b&gt;.png: cannot be decoded"),
    ],
)  # fmt: skip
def test_what_is_no_image_is_refused_and_the_one_before_stays(actions, content, name, message):
    visit = visit_of(actions)
    shown = actions.open("a", content, name)
    assert message in shown.talk
    assert shown.view is None
    assert np.array_equal(visit.session.image, IMAGE)


@pytest.mark.parametrize(
    ("ask", "text", "message"),
    [
        ("ask", "  ", "the question is empty; type one"),
        ("ask", "word " * 3000, "tokens"),
        ("segment", " , ", "has no class name"),
        ("segment", "dog, &quot;", None),
        ("segment", '"dog', "is closed after it"),
        ("segment", "dog, tree, sky, sea", "4 classes in an image of 40 x 60 pixels are too many at once"),
        ("segment", "dog, " * 30_000, "150,000 letters, of at most 100,000"),
        ("ask", "dog, " * 30_000, "149,999 letters, of at most 100,000"),
    ],
)
def test_bad_questions_are_one_message_and_no_part_of_the_conversation(
    actions, ask, text, message, monkeypatch
):
    monkeypatch.setattr(jobs, "MAX_MASK_PIXELS", IMAGE.size)
    visit = visit_of(actions)
    [*_, last] = shown_by(getattr(actions, ask)("a", text))
    if message is None:
        assert "&amp;quot;" in last.view
        return
    assert message in last.talk
    assert 'class="problem"' in last.talk
    assert not visit.session.answers
    assert "no image is open" in shown_by(actions.ask("nobody", "What?"))[-1].talk
