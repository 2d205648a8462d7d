"""chat.py as it is used: conversations, many images, JSON, files; odd images and odd input."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image
from pycocotools import mask as coco_mask
from pydantic import TypeAdapter

import chat
from model.exports import FoundMask, components
from model.text.special_tokens import NEG, SEG, Special
from tests.commands import REPOSITORY, complaint
from tests.tiny_weights import noise_image
from utils.serving.schema import AnswerJson, ConversationJson

DOG = ("The dog ", Special(SEG), ", not the cat ", Special(NEG), ".")


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """The current folder, with a photo in it."""
    monkeypatch.chdir(tmp_path)
    Image.fromarray(noise_image(40, 60)).save("a.png")
    return tmp_path


@pytest.fixture
def run(tiny, monkeypatch):
    """Runs chat.py with the tiny model."""
    monkeypatch.setattr(chat, "load_model", lambda *_, **__: (tiny, tiny.processor))
    return lambda *flags: chat.main(["--version=any", *flags])


def type_in(monkeypatch, *lines):
    """The lines that are typed; an exception among them is raised, as by Ctrl-C."""
    given = iter([*lines, EOFError()])

    def read(prompt=""):
        line = next(given)
        if isinstance(line, BaseException):
            raise line
        return line

    monkeypatch.setattr("builtins.input", read)


def answers_in(out: str) -> list[dict]:
    found = [json.loads(line) for line in out.splitlines()]
    for answer in found:
        TypeAdapter(AnswerJson).validate_python(answer, strict=True, extra="forbid")
    return found


# ------------------------------------------------------------------------------------ JSON and files


def test_json_has_every_class_and_every_mask_and_nothing_else_is_printed(run, desk, tiny, capsys):
    flags = ["--image=a.png", "--classes=dog, tree, sky", "--presence_threshold=0.2", "--vis_save_path=out"]
    assert run(*flags, "--json", "--polygons", "--cutouts") == 0
    out, err = capsys.readouterr()
    [answer] = answers_in(out)
    assert err == ""
    found = tiny.segment(noise_image(40, 60), ["dog", "tree", "sky"], presence_threshold=0.2)
    assert answer["image"] == {"height": 40, "width": 60, "file": "a.png"}
    assert (answer["asked"], answer["prompt"]) == (["dog", "tree", "sky"], None)
    assert answer["threshold"] == 0.2
    assert [one["present"] for one in answer["classes"]] == found.present
    assert [one["probability"] for one in answer["classes"]] == pytest.approx(found.probabilities, abs=1e-6)
    assert [mask["label"] for mask in answer["masks"]] == list(found.present_names)
    for mask, logits in zip(answer["masks"], found.masks, strict=True):
        pixels = (logits > 0).numpy()
        assert np.array_equal(coco_mask.decode(mask["rle"]), pixels)
        assert mask["area"] == pixels.sum()
        assert np.array_equal(np.asarray(Image.open(mask["file"])), pixels * np.uint8(255))
        if not mask["area"]:
            assert "cutout" not in mask
            continue
        x, y, width, height = mask["box"]
        assert mask["box"] == coco_mask.toBbox(mask["rle"]).tolist()
        cut = np.asarray(Image.open(mask["cutout"]))
        window = np.s_[y : y + height, x : x + width]
        assert np.array_equal(cut[..., :3], noise_image(40, 60)[window])
        assert np.array_equal(cut[..., 3] > 0, pixels[window])
        assert mask["polygons"]
    assert Image.open(answer["overlay"]).size[0] > 60


def test_instances_are_masks_of_their_own(run, desk, tiny, capsys):
    flags = ["--image=a.png", "--classes=dog, tree", "--presence_threshold=0", "--json"]
    assert run(*flags) == 0
    assert run(*flags, "--instances", "--min_area=3") == 0
    whole, parts = answers_in(capsys.readouterr().out)
    expected = [
        (mask["label"], int(part.sum()))
        for mask in whole["masks"]
        for part in components(coco_mask.decode(mask["rle"]).astype(bool), 3)
    ]
    assert [(mask["label"], mask["area"]) for mask in parts["masks"]] == expected
    assert len({mask["file"] for mask in parts["masks"]}) == len(expected)
    assert (whole["instances"], parts["instances"]) == (None, "components")


def test_objects_that_the_model_tells_apart_are_the_instances(run, desk, tiny, monkeypatch, capsys):
    segment, pixels = type(tiny).segment, np.ones((40, 60), dtype=bool)
    own = (FoundMask(label="dog", pixels=pixels, probability=0.5, score=0.25),)
    monkeypatch.setattr(
        tiny, "segment", lambda *args, **rest: replace(segment(tiny, *args, **rest), instances=own)
    )
    assert run("--image=a.png", "--classes=dog, tree", "--instances", "--json") == 0
    [answer] = answers_in(capsys.readouterr().out)
    assert answer["instances"] == "model"
    assert [(mask["label"], mask["area"], mask["score"]) for mask in answer["masks"]] == [("dog", 2400, 0.25)]


def test_many_images_are_answered_one_after_the_other(run, desk, says, capsys):
    says("no")
    (desk / "photos" / "b").mkdir(parents=True)
    for name in ("photos/1.png", "photos/1.jpg", "photos/b/1.png"):
        Image.fromarray(noise_image(20, 30)).save(desk / name)
    (desk / "photos" / "2.png").write_text("no image")
    assert run("--image=photos/**/*.*", "--prompt=What?", "--json", "--vis_save_path=out") == 2
    out, err = capsys.readouterr()
    assert [answer["image"]["file"] for answer in answers_in(out)] == [
        "photos/1.jpg", "photos/1.png", "photos/b/1.png"
    ]  # fmt: skip
    assert len({answer["overlay"] for answer in answers_in(out)}) == 3
    left_out, last = err.splitlines()
    assert "photos/2.png" in left_out
    assert last == "chat.py: 1 of 4 images could not be read; they are named above"
    assert run("--image=photos/b", "--prompt=What?") == 0
    assert run("--image=photos/*.jpg", "--classes=dog") == 0
    assert run("--image=photos/*.gif", "--classes=dog") == 2
    assert "--image photos/*.gif matches no image" in complaint(capsys)


def test_a_pipe_gets_answers_alone(run, desk, says, monkeypatch, capsys):
    says(*DOG)
    type_in(
        monkeypatch, "a.png", "Where is the dog, not the cat?", ":threshold", "./none.png", ":save", ":help"
    )
    assert run("--json", "--vis_save_path=out") == 0
    out, err = capsys.readouterr()
    [answer] = answers_in(out)
    assert answer["prompt"] == "Where is the dog, not the cat?"
    assert answer["text"] == "The dog [SEG], not the cat [NEG]."
    assert [(one["label"], one["present"]) for one in answer["classes"]] == [
        ("The dog", True),
        ("not the cat", False),
    ]
    assert "threshold: none" in err
    assert ":save [FILE]" in err
    saved = json.loads((desk / "out" / "conversation.json").read_text())
    TypeAdapter(ConversationJson).validate_python(saved, strict=True, extra="forbid")
    assert saved["answers"] == [answer]


# ------------------------------------------------------------------------------------ conversations


def test_follow_ups_thresholds_other_images_and_saving(run, desk, tiny, monkeypatch, capsys):
    Image.fromarray(noise_image(30, 30)).save("b.png")
    type_in(
        monkeypatch, "a.png", ":classes dog, tree", ":threshold 0", ":threshold none", "What is it?",
        ":save mine.json", ":save mine.json", ":image b.png", ":threshold 0.3", ":reset", ":save",
        ":threshold x", "Why?", ":quit",
    )  # fmt: skip
    assert run("--max_new_tokens=4", "--vis_save_path=out") == 0
    out = capsys.readouterr().out
    assert "dog [SEG], tree [SEG]." in out
    assert "(cut after 4 tokens" in out
    assert "mine.json: there is a file of this name" in out
    assert "another image: the conversation begins anew" in out
    assert "threshold: 0.3" in out
    assert "the conversation begins anew, about the same image" in out
    assert "nothing was asked yet" in out
    assert "'x' is no threshold" in out
    saved = json.loads((desk / "mine.json").read_text())
    TypeAdapter(ConversationJson).validate_python(saved, strict=True, extra="forbid")
    assert [answer["prompt"] for answer in saved["answers"]] == [None, "What is it?"]
    assert saved["answers"][0]["threshold"] is None, "as last decided"
    names = {path.name for path in (desk / "out").iterdir()}
    assert {"a_1_overlay.png", "a_2_overlay.png", "b_1_overlay.png"} <= names
    # Those of the threshold 0 are gone again, unless they were kept by the last one.
    left = {name for name in names if name.startswith("a_1_mask")}
    assert left == {Path(mask["file"]).name for mask in saved["answers"][0]["masks"]}
    assert "probabilities: dog 0." in out


def test_ctrl_c_stops_an_answer_and_not_the_program(run, desk, tiny, monkeypatch, capsys):
    chat_, calls = tiny.chat, []

    def interrupted(image, conversation, **rest):
        calls.append(len(conversation.turns))
        if len(calls) == 1:
            raise KeyboardInterrupt
        return chat_(image, conversation, **rest)

    monkeypatch.setattr(tiny, "chat", interrupted)
    type_in(
        monkeypatch, KeyboardInterrupt(), "a.png", KeyboardInterrupt(), "Where?", "Where now?", "And here?",
        KeyboardInterrupt(), KeyboardInterrupt(), "never read",
    )  # fmt: skip
    assert run("--max_new_tokens=3") == 0
    out = capsys.readouterr().out
    assert out.count("(stopped)") == 1
    assert out.count("(:quit or Ctrl-D leaves") == 3
    assert calls == [1, 1, 3], "the stopped question is no part of the conversation"


def test_drawn_answers_are_reproducible_and_depend_on_the_seed(run, desk, capsys):
    def text(*flags):
        assert run("--image=a.png", "--prompt=What is it?", "--max_new_tokens=8", "--json", *flags) == 0
        return answers_in(capsys.readouterr().out)[0]["text"]

    assert text("--temperature=1.5", "--seed=1") == text("--temperature=1.5", "--seed=1")
    assert text("--temperature=1.5", "--seed=1") != text("--temperature=1.5", "--seed=2")
    assert text() == text("--seed=9", "--temperature=0")


# ------------------------------------------------------------------------------------ odd input


def stored(name: str, desk) -> str:
    """An odd image file; all but the last have more black on the left."""
    grey = np.zeros((20, 30), np.uint8)
    grey[:, 12:] = 250
    if name == "one_pixel.png":
        image = Image.fromarray(grey[:1, :1])
    elif name == "cmyk.jpg":
        image = Image.fromarray(grey).convert("RGB").convert("CMYK")
    elif name == "sixteen.png":
        image = Image.fromarray(grey.astype(np.uint16) * 257)
    elif name == "transparent.png":
        image = Image.fromarray(np.dstack([grey, grey, grey, grey]))
    else:
        image = Image.fromarray(grey)
    exif = Image.Exif()
    if name == "turned.jpg":
        exif[ExifTags.Base.Orientation] = 6
    image.save(desk / name, **({"exif": exif} if name == "turned.jpg" else {}))
    return name


@pytest.mark.parametrize(
    ("name", "size"),
    [("one_pixel.png", [1, 1]), ("cmyk.jpg", [20, 30]), ("grey.png", [20, 30]), ("sixteen.png", [20, 30]),
     ("transparent.png", [20, 30]), ("turned.jpg", [30, 20]), ("wide.png", [20, 30])],
)  # fmt: skip
def test_masks_have_the_size_of_the_image_as_a_viewer_shows_it(run, desk, capsys, name, size):
    flags = ["--classes=dog", "--presence_threshold=0", "--json", "--cutouts"]
    assert run(f"--image={stored(name, desk)}", *flags) == 0
    [answer] = answers_in(capsys.readouterr().out)
    assert [answer["image"]["height"], answer["image"]["width"]] == size
    [mask] = answer["masks"]
    assert mask["rle"]["size"] == size
    assert Image.open(mask["file"]).size == (size[1], size[0])
    assert Image.open(answer["overlay"]).mode == "RGB"


def test_images_that_are_none_are_one_line(run, desk, monkeypatch, capsys):
    Image.new("1", (20_000, 20_000)).save("huge.png")
    (desk / "text.png").write_text("hello")
    large = "400,000,000 pixels, of at most 100,000,000; make it smaller"
    for name, message in (("huge.png", large), ("text.png", "not an image")):
        assert run(f"--image={name}", "--classes=dog") == 2
        assert message in complaint(capsys)
        type_in(monkeypatch, name, "a.png", ":classes dog")
        assert run() == 0
        out = capsys.readouterr().out
        assert message in out
        assert "a_1_overlay.png" in out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--prompt="], "needs one question"),
        (["--prompt=  "], "needs one question"),
        (["--prompt=" + "word " * 2000], "tokens"),
        (["--classes=dog", "--temperature=1"], "--temperature is for answers in words"),
        (["--prompt=x", "--temperature=-1"], "--temperature must be 0"),
        (["--prompt=x", "--top_p=0"], "--top_p must be above 0"),
        (["--prompt=x", "--seed=-3"], "--seed must be in 0 to"),
        (
            ["--classes=dog", "--min_area=3"],
            "--min_area leaves out small instances; it needs --instances too",
        ),
        (["--classes=dog", "--instances", "--min_area=-3"], "--min_area is a number of pixels, at least 0"),
        (["--classes=dog", "--polygons"], "--polygons adds outlines to the JSON"),
        (['--classes="dog'], "is closed after it"),
        (["--classes=dog", "--inline_images=gif"], "--inline_images"),
    ],
)
def test_bad_input_is_one_line(run, desk, capsys, flags, message):
    assert run("--image=a.png", *flags) == 2
    assert message in complaint(capsys)


@pytest.mark.parametrize("name", ['"traffic light, red"', "🐕", "<b>x</b>", "[SEG]", "</s>", "x\x1b[2J"])
def test_odd_class_names_reach_the_files_and_the_json_and_command_nothing(run, desk, capsys, name):
    flags = ["--image=a.png", f"--classes={name}, dog", "--presence_threshold=0"]
    assert run(*flags) == 0
    assert "\x1b" not in capsys.readouterr().out
    assert run(*flags, "--json") == 0
    [answer] = answers_in(capsys.readouterr().out)
    assert answer["asked"] == [name.strip('"').lower(), "dog"]
    assert len(answer["masks"]) == 2


def test_a_question_longer_than_the_context_leaves_a_conversation_going(run, desk, monkeypatch, capsys):
    type_in(monkeypatch, "a.png", "word " * 700, "Why?")
    assert run("--max_new_tokens=3") == 0
    out = capsys.readouterr().out
    assert "and the model reads at most" in out
    assert "a_1_overlay.png" in out


def test_the_schema_of_the_documentation_is_that_of_the_types():
    written = json.loads((REPOSITORY / "docs" / "answer.schema.json").read_text())
    assert written == TypeAdapter(AnswerJson).json_schema()


def test_help_fits_into_eighty_columns(run, capsys):
    with pytest.raises(SystemExit):
        run("--help")
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_a_reader_who_goes_and_ctrl_c_end_it_without_a_traceback(run, desk, tiny, monkeypatch, capfd):
    def broken(*_, **__):
        raise BrokenPipeError

    monkeypatch.setattr(tiny, "segment", broken)
    with capfd.disabled():
        reading, writing = os.pipe()
        os.close(reading)
        saved = os.dup(1)
        try:
            os.dup2(writing, 1)
            assert run("--image=a.png", "--classes=dog") == 141
        finally:
            os.dup2(saved, 1)
            os.close(writing)
            os.close(saved)

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(tiny, "segment", interrupted)
    assert run("--image=a.png", "--classes=dog") == 130
    assert capfd.readouterr().err.endswith("chat.py: interrupted\n")
