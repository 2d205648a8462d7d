"""The shipped toy assistant: it answers about the examples, and is what chat.py takes where no model is named."""

from __future__ import annotations

import json
import re

import pytest
import torch

from model.checkpoints.load import load_model
from tests.commands import REPOSITORY, blocks, complaint, run
from utils.config.inference import TOY_ASSISTANT
from utils.serving.lines import HELP
from utils.toy.assistant import BASE, MAX_BYTES, pack

EXAMPLES = REPOSITORY / "assets" / "toy" / "examples"
# What is in the scenes, and what is not.
THERE = {
    "street.jpg": ["car", "person", "road", "grass", "airplane"],
    "park.jpg": ["tree", "boat", "sea", "grass", "sky"],
    "beach.jpg": ["person", "flag", "sand", "sea", "boat", "mountain"],
}
ABSENT = {
    "street.jpg": ["boat", "tent"],
    "park.jpg": ["car", "person"],
    "beach.jpg": ["car", "house", "tent"],
}


@pytest.fixture(scope="module")
def assistant():
    model, _ = load_model(TOY_ASSISTANT)
    return model


@pytest.mark.parametrize("name", THERE)
def test_it_says_what_is_in_the_examples_and_what_is_not(assistant, name, tmp_path):
    from utils.data.images import read_image

    found = assistant.segment(read_image(EXAMPLES / name), THERE[name] + ABSENT[name])
    assert set(found.present_names) == set(THERE[name])
    assert all(mask.any() for mask in found.masks > 0)


def test_it_says_what_the_session_of_the_documentation_says(assistant, tmp_path, monkeypatch, capsys):
    (session,) = [
        block for block in blocks(REPOSITORY / "docs/chat.md", "text") if block.startswith("image> ")
    ]
    session = session.replace("\n    ", " ")  # a line that the terminal's width has wrapped
    typed = iter(re.findall(r"^\w+> (.*)$", session, re.M))
    (tmp_path / "assets").symlink_to(REPOSITORY / "assets")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("builtins.input", lambda prompt="": next(typed, ":quit"))
    monkeypatch.setattr("chat.load_model", lambda *_, **__: (assistant, assistant.processor))
    assert run("chat", "--vis_save_path=answers") == 0
    told = capsys.readouterr().out.removeprefix(f"{HELP}\n")

    def plain(text):  # probabilities may differ in their last digit
        return re.sub(r"\d\.\d\d", "0.00", text).splitlines()

    assert plain(told) == [line for line in plain(session) if "> " not in line]


def test_it_is_small():
    assert sum(file.stat().st_size for file in TOY_ASSISTANT.rglob("*") if file.is_file()) < MAX_BYTES


def test_chat_and_images_take_it_where_no_model_is_named_and_say_so(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)  # found from any folder
    street = EXAMPLES / "street.jpg"
    assert (
        run("chat", "--image", street, "--classes", "car, boat", "--json", f"--vis_save_path={tmp_path}") == 0
    )
    told = capsys.readouterr()
    assert "No --version: the toy assistant answers" in told.err
    answer = json.loads(told.out)
    assert [(each["label"], each["present"]) for each in answer["classes"]] == [
        ("car", True),
        ("boat", False),
    ]
    (tmp_path / "classes.txt").write_text("car\nboat\n")
    images = ["--images", street, "--classes", "classes.txt", "--save_predictions", tmp_path / "out"]
    assert run("test_sem", *images, "--num_threads=1") == 0
    assert "No --version: the toy assistant answers" in capsys.readouterr().err


def test_an_evaluation_does_not_take_it(capsys):
    assert run("test_sem", "--val_dataset_list=ade20k") == 2
    complaint(capsys, "--version says which model to load")


def test_a_packed_run_is_the_run_in_bfloat16(trained_run, workspace, tmp_path, monkeypatch):
    monkeypatch.setitem(BASE, "version", "base/llava")
    pack(trained_run.folder, workspace / "packed")
    monkeypatch.chdir(workspace)
    parts = {"vision_tower": "base/clip", "sam": "base/sam.pth"}
    packed, _ = load_model(workspace / "packed", **parts)
    direct, _ = load_model(trained_run.folder, dtype=torch.float32)
    for name, value in direct.seg_projector.state_dict().items():
        assert torch.equal(packed.seg_projector.state_dict()[name], value.bfloat16().float()), name
