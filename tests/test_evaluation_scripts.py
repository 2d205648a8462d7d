"""test_sem.py and chat.py from the command line's side, with a model that knows its answers."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import chat
import test_sem as evaluation_script
from model.outputs import ChatAnswer, Segmentation
from model.sequence import SequenceFormat
from utils.data.types import SemanticSample

CLASSES = ("sky", "grass", "dog")


class KnowingModel(torch.nn.Module):
    """Sees sky in the upper half and grass below, and no dog."""

    processor = SimpleNamespace(format=SequenceFormat.named("paper"))
    device = torch.device("cpu")

    def segment_batch(self, images, classes, **_):
        return [self.segment(image, names) for image, names in zip(images, classes, strict=True)]

    def segment(self, image, classes, **_):
        height, width = image.shape[:2]
        upper = torch.ones(height, width)
        upper[height // 2 :] = -1
        masks = {"sky": upper, "grass": -upper}
        return Segmentation(
            names=tuple(classes),
            present=[name in masks for name in classes],
            probabilities=[float(name in masks) for name in classes],
            masks=torch.stack([masks[name] for name in classes if name in masks]),
            num_passes=1,
        )

    def chat(self, image, text, **_):
        if "dog" in text:
            return ChatAnswer(
                text="It is not in this image [NEG].", masks=torch.zeros(0, *image.shape[:2]), token_ids=[]
            )
        return ChatAnswer(text="Sure, it is [SEG].", masks=self.segment(image, ["sky"]).masks, token_ids=[])


@pytest.fixture
def knowing(monkeypatch):
    model = KnowingModel()
    for script in (chat, evaluation_script):
        monkeypatch.setattr(script, "load_model", lambda *_, **__: (model, model.processor))
    return model


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "street.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(path)
    return path


def complaint(capsys) -> str:
    """The one line on stderr."""
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    return lines[0]


# ---------------------------------------------------------------------------------------- test_sem


def test_an_evaluation_prints_a_table_and_writes_report_and_sheet(knowing, monkeypatch, tmp_path, capsys):
    label = np.repeat([0, 1], 10)[:, None].repeat(30, axis=1).astype(np.uint8)
    samples = [
        SemanticSample(image=np.full((20, 30, 3), k, np.uint8), label=label, classes=CLASSES, source=str(k))
        for k in range(3)
    ]
    monkeypatch.setattr(
        evaluation_script, "open_datasets", lambda entries, _: dict.fromkeys(entries, samples)
    )
    report_dir, pictures = tmp_path / "report", tmp_path / "pictures"
    flags = ["--version", "any", "--eval_only", "--val_dataset_list", "ade20k", "--val_batch_size", "2"]
    assert evaluation_script.main([*flags, f"--report_dir={report_dir}", f"--vis_save_path={pictures}"]) == 0
    assert "semantic.miou" in capsys.readouterr().out
    content = json.loads((report_dir / "report.json").read_text())
    assert content["semantic"]["miou"] == 1.0
    assert content["model"] == "any"
    with Image.open(pictures / "sheet_ade20k.png") as sheet:
        assert sheet.width > 500
    assert "(../pictures/sheet_ade20k.png)" in (report_dir / "report.md").read_text()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--version=nowhere", "--val_dataset_list=ade20j"], "unknown data set 'ade20j'; known: ade20k"),
        (["--version=nowhere", "--val_dataset_list=ade20k"], "is not a folder"),
        (["--version=nowhere", "--val_batch_size=0"], "--val_batch_size must be > 0"),
        (["--version=nowhere", "--val_batchsize=1"], "did you mean --val_batch_size?"),
        ([], "--version"),
    ],
)
def test_bad_input_of_an_evaluation_is_one_line_and_nothing_is_written(flags, message, tmp_path, capsys):
    places = [f"--dataset_dir={tmp_path / 'data'}", f"--report_dir={tmp_path / 'report'}"]
    assert evaluation_script.main([*flags, *places]) == 2
    assert message in complaint(capsys)
    assert not list(tmp_path.iterdir())


def test_a_missing_model_folder_is_said_in_one_line(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(evaluation_script, "open_datasets", lambda *_: {})
    assert evaluation_script.main([f"--version={tmp_path / 'nowhere'}"]) == 2
    assert "nowhere" in complaint(capsys)


# -------------------------------------------------------------------------------------------- chat


def test_one_complex_question_prints_the_answer_and_writes_masks_and_overlay(
    knowing, picture, tmp_path, capsys
):
    flags = ["--version=any", f"--image={picture}", f"--vis_save_path={tmp_path / 'out'}"]
    assert chat.main([*flags, "--classes", "grass, sky ,dog, Sky"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "grass [SEG], sky [SEG], dog [NEG]."
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["street_mask_1_grass.png", "street_mask_2_sky.png", "street_overlay.png"]
    mask = np.asarray(Image.open(tmp_path / "out" / "street_mask_2_sky.png"))
    assert mask.shape == (20, 30)
    assert (mask[:10] == 255).all()
    assert (mask[10:] == 0).all()


def test_a_question_in_words_is_answered_with_a_mask_or_without(knowing, picture, tmp_path, capsys):
    flags = ["--version=any", f"--image={picture}", f"--vis_save_path={tmp_path / 'out'}"]
    assert chat.main([*flags, "--prompt", "Where is the sky?"]) == 0
    assert capsys.readouterr().out.startswith("Sure, it is [SEG].")
    assert (tmp_path / "out" / "street_mask_1.png").is_file()
    (tmp_path / "out" / "street_mask_1.png").unlink()
    assert chat.main([*flags, "--prompt", "Where is the dog?"]) == 0
    assert "[NEG]" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["street_overlay.png"]


def test_masks_of_a_generated_answer_have_the_names_that_the_user_used(knowing, picture, monkeypatch):
    masks = torch.ones(2, 20, 30)
    monkeypatch.setattr(
        KnowingModel,
        "chat",
        lambda *_, **__: ChatAnswer(text="Red car [SEG], dog [NEG], sky [SEG].", masks=masks, token_ids=[]),
    )
    config = SimpleNamespace(max_new_tokens=9)
    answer = chat.ask_in_words(knowing, None, "Can you segment the red car, dog, sky in this image?", config)
    assert answer.names == ("Red car", "sky")
    assert answer.absent == ("dog",)
    monkeypatch.setattr(chat, "name_in", lambda prompt, name: "")
    assert chat.ask_in_words(knowing, None, "?", config).names == ("", "")


def test_a_format_without_a_token_for_absent_classes_names_only_what_is_there(knowing, monkeypatch):
    monkeypatch.setattr(KnowingModel, "processor", SimpleNamespace(format=SequenceFormat.named("lisa")))
    config = SimpleNamespace(presence_threshold=None, classes_per_query=None)
    answer = chat.ask(knowing, np.zeros((4, 4, 3), np.uint8), config, classes="dog, sky")
    assert answer.text == "sky [SEG]."
    assert answer.absent == ("dog",)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--image=no.png", "--prompt=hi"], "no.png does not exist; pass a picture file"),
        (["--image=broken.png", "--prompt=hi"], "broken.png: cannot be decoded"),
        (["--image=street.png"], "either --prompt or --classes"),
        (["--image=street.png", "--prompt=hi", "--classes=dog"], "either --prompt or --classes"),
        (["--image=street.png", "--classes= , "], "' , ' has no class name"),
        (["--prompt=hi"], "--prompt needs --image"),
    ],
)
def test_bad_input_of_chat_is_one_line(knowing, picture, tmp_path, monkeypatch, capsys, flags, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    assert chat.main(["--version=any", "--vis_save_path=out", *flags]) == 2
    assert message in complaint(capsys)
    assert not (tmp_path / "out").exists()


def test_a_missing_model_for_chat_is_said_in_one_line(tmp_path, capsys):
    assert chat.main([f"--version={tmp_path / 'nowhere'}"]) == 2
    assert "nowhere" in complaint(capsys)


def test_a_conversation_goes_on_after_a_mistake_and_numbers_its_answers(
    knowing, picture, tmp_path, monkeypatch, capsys
):
    lines = iter(
        ["missing.png", str(picture), "Where is the sky?", ":classes sky, dog", ":image no.png", "", ":quit"]
    )
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    assert chat.main(["--version=any", f"--vis_save_path={tmp_path / 'out'}"]) == 0
    out = capsys.readouterr().out
    for expected in (
        "missing.png does not exist",
        "Sure, it is [SEG].",
        "sky [SEG], dog [NEG].",
        "no.png does not exist",
    ):
        assert expected in out
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {
        "street_1_mask_1.png",
        "street_1_overlay.png",
        "street_2_mask_1_sky.png",
        "street_2_overlay.png",
    }


def test_a_conversation_ends_with_its_input(knowing, monkeypatch):
    def no_more(prompt):
        raise EOFError

    monkeypatch.setattr("builtins.input", no_more)
    assert chat.main(["--version=any"]) == 0
