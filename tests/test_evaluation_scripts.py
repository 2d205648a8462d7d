"""test_sem.py and chat.py from the command line's side, with a model that knows its answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import chat
import test_sem as evaluation_script
from model.outputs import Segmentation
from model.text.conversation import Turn
from model.text.format import SequenceFormat
from tests.commands import REPOSITORY
from tests.told_answers import answer_of
from tests.utils.evaluation.told_model import ListDataset
from utils.common.processes import without_launcher
from utils.config.inference import TestConfig
from utils.data.types import SemanticSample
from utils.serving.answers import Asking, ask_classes, ask_in_words

CLASSES = ("sky", "grass", "dog")


class KnowingModel(torch.nn.Module):
    """Sees sky in the upper half and grass below, and no dog."""

    processor = SimpleNamespace(format=SequenceFormat.named("paper"), said=lambda ids: Turn("assistant", ()))
    config = SimpleNamespace(num_all_classes=80, sequence_format=None, prompt=None)
    device = torch.device("cpu")

    def encode_batch(self, images, **_):
        return images

    def encode(self, image):
        return image

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

    def chat(self, image, conversation, **_):
        if "dog" in str(conversation.turns[-1]):
            return answer_of("It is not in this image [NEG].", torch.zeros(0, *image.shape[:2]))
        return answer_of("Sure, it is [SEG].", self.segment(image, ["sky"]).masks)


@pytest.fixture
def knowing(monkeypatch):
    model = KnowingModel()
    for script in (chat, evaluation_script):
        monkeypatch.setattr(script, "load_model", lambda *_, **__: (model, model.processor))
    return model


@pytest.fixture
def street(tmp_path):
    path = tmp_path / "street.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(path)
    return path


def complaint(capsys) -> str:
    """The one line on stderr."""
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    return lines[0]


# ---------------------------------------------------------------------------------------- test_sem


@pytest.fixture
def scenes(monkeypatch):
    """Three samples that the model knows, whatever data sets are asked for."""
    label = np.repeat([0, 1], 10)[:, None].repeat(30, axis=1).astype(np.uint16)
    samples = [
        SemanticSample(image=np.full((20, 30, 3), k, np.uint8), label=label, classes=CLASSES, source=str(k))
        for k in range(3)
    ]
    monkeypatch.setattr(
        evaluation_script, "open_list", lambda text, _: dict.fromkeys(text.split(","), ListDataset(samples))
    )


def test_an_evaluation_prints_a_table_and_writes_report_sheet_and_predictions(
    knowing, scenes, tmp_path, capsys
):
    report_dir, images = tmp_path / "report", tmp_path / "images"
    flags = ["--version", "any", "--eval_only", "--val_dataset_list", "ade20k", "--val_batch_size", "2"]
    folders = [
        f"--report_dir={report_dir}",
        f"--vis_save_path={images}",
        f"--save_predictions={tmp_path / 'p'}",
    ]
    assert evaluation_script.main([*flags, *folders]) == 0
    assert "semantic.miou" in capsys.readouterr().out
    content = json.loads((report_dir / "report.json").read_text())
    assert content["semantic"]["miou"] == 1.0
    assert content["model"] == "any"
    with Image.open(images / "sheet_ade20k.png") as sheet:
        assert sheet.width > 500
    assert "(../images/sheet_ade20k.png)" in (report_dir / "report.md").read_text()
    names = {path.name for path in report_dir.iterdir()}
    assert names == {
        "report.json",
        "report.md",
        "per_class_ade20k.csv",
        "confusion_ade20k.png",
        "samples.html",
        "finished",
    }
    labels = np.asarray(Image.open(tmp_path / "p" / "ade20k" / "1.png"))
    assert (labels[:10] == 0).all()
    assert (labels[10:] == 1).all()


def test_a_finished_evaluation_is_reported_again_without_predicting(
    knowing, scenes, monkeypatch, tmp_path, capsys
):
    assert evaluation_script.main(["--version=any", "--resume"]) == 2
    assert "--resume needs --report_dir" in complaint(capsys)
    flags = ["--version=any", "--val_dataset_list=ade20k,cocostuff", f"--report_dir={tmp_path}"]
    assert evaluation_script.main(flags) == 0
    before = json.loads((tmp_path / "report.json").read_text())
    monkeypatch.setattr(KnowingModel, "segment_batch", lambda *_, **__: pytest.fail("was predicted again"))
    assert evaluation_script.main([*flags, "--resume"]) == 0
    after = json.loads((tmp_path / "report.json").read_text())
    assert before | {"timings": None} == after | {"timings": None}


def test_every_setting_of_an_evaluation_has_a_flag_that_reaches_it():
    config = TestConfig(
        version="any", classes_per_query=5, rethreshold=0.4, match_distance=0.1, max_new_tokens=9, max_samples=3,
        seed=7, val_batch_size=2, workers=1,
    )  # fmt: skip
    settings = evaluation_script.settings_of(config)
    for name in ("classes_per_query", "rethreshold", "match_distance", "max_new_tokens", "max_samples", "seed",
                 "val_batch_size", "workers"):  # fmt: skip
        assert getattr(settings, name) == getattr(config, name)
    flags = ("calibrate", "oracle_classes", "free_generation", "teacher_forced")
    for name in flags:
        changed = evaluation_script.settings_of(TestConfig(version="any", **{name: True}))
        assert [getattr(changed, other) for other in flags] == [other == name for other in flags]


def test_images_without_ground_truth_are_predicted(knowing, street, tmp_path, capsys):
    (tmp_path / "classes.txt").write_text("grass\ndog\nsky\n")
    flags = ["--version=any", f"--images={street}", f"--classes={tmp_path / 'classes.txt'}"]
    assert evaluation_script.main([*flags, f"--save_predictions={tmp_path / 'out'}"]) == 0
    assert str(tmp_path / "out" / "predictions.json") in capsys.readouterr().out
    [entry] = json.loads((tmp_path / "out" / "predictions.json").read_text())["images"]
    assert {found["name"] for found in entry["present"]} == {"grass", "sky"}
    labels = np.asarray(Image.open(tmp_path / "out" / "labels" / "street.png"))
    assert (labels[:10] == 2).all()
    assert (labels[10:] == 0).all()


@pytest.mark.launcher
def test_two_processes_write_the_report_and_the_predictions_of_one(workspace, merged_model, tmp_path):
    flags = ["--version", str(merged_model), "--dataset_dir", str(workspace / "dataset"), "--precision=fp32",
             "--val_dataset_list=ReasonSeg|val,refcoco|unc|val", "--max_samples=3", "--max_new_tokens=4",
             "--num_threads=1"]  # fmt: skip
    one, two = tmp_path / "one", tmp_path / "two"
    # With the threads that the two processes have: sums in another order differ in their last bits.
    assert evaluation_script.main([*flags, f"--report_dir={one}", f"--save_predictions={one}"]) == 0
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*command, REPOSITORY / "test_sem.py", *flags, f"--report_dir={two}", f"--save_predictions={two}"],
        env=without_launcher(os.environ), capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    reports = [json.loads((folder / "report.json").read_text()) for folder in (one, two)]
    assert reports[0] | {"timings": None} == reports[1] | {"timings": None}
    for name in ("ReasonSeg_val.json", "refcoco_unc_val.json", "samples.html"):
        assert (one / name).read_bytes() == (two / name).read_bytes()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--images=*.jpg"], "--images and --classes belong together"),
        (["--classes=classes.txt"], "--images and --classes belong together"),
        (["--images=*.jpg", "--classes=classes.txt"], "--images needs --save_predictions"),
        (
            ["--images=x", "--classes=c", "--save_predictions=o", "--report_dir=r", "--calibrate"],
            "--report_dir, --calibrate means nothing with --images",
        ),
        (["--images=nowhere/*.jpg", "--classes=ade20k", "--save_predictions=o"], "matches no image"),
        (["--images=street.png", "--classes=none.txt", "--save_predictions=o"], "none.txt is no .txt file"),
        (["--images=street.png", "--classes=twice.txt", "--save_predictions=o"], "'dog' and 'dog'"),
        (["--images=street.png", "--classes=empty.txt", "--save_predictions=o"], "no classes"),
        (
            ["--images=street.png", "--classes=ade20k", "--save_predictions=empty.txt"],
            "--save_predictions empty.txt",
        ),
    ],
)
def test_bad_input_of_a_prediction_is_one_line_and_nothing_is_written(
    street, tmp_path, monkeypatch, capsys, flags, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "twice.txt").write_text("dog\ncat\ndog\n")
    (tmp_path / "empty.txt").write_text("\n")
    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr(evaluation_script, "load_model", lambda *_, **__: pytest.fail("the model was loaded"))
    assert evaluation_script.main(["--version=any", *flags]) == 2
    assert message in complaint(capsys)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--version=nowhere", "--val_dataset_list=ade20j"], "unknown data set 'ade20j'; known: ade20k"),
        (["--version=nowhere", "--val_dataset_list=ade20k"], "is not a folder"),
        (["--version=nowhere", "--rethreshold=2"], "rethreshold must be in 0 to 1"),
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


@pytest.mark.parametrize("flag", ["--report_dir", "--vis_save_path", "--save_predictions"])
def test_a_folder_that_cannot_be_written_is_said_before_the_model_is_loaded(
    scenes, street, monkeypatch, capsys, flag
):
    monkeypatch.setattr(evaluation_script, "load_model", lambda *_, **__: pytest.fail("the model was loaded"))
    assert evaluation_script.main(["--version=any", f"{flag}={street}/below"]) == 2
    assert f"{flag} {street}/below cannot be written to" in complaint(capsys)


def test_a_threshold_for_a_model_without_a_token_for_absent_classes_is_refused(
    knowing, scenes, monkeypatch, capsys
):
    monkeypatch.setattr(knowing.processor, "format", SequenceFormat.named("lisa"))
    monkeypatch.setattr(KnowingModel, "segment_batch", lambda *_, **__: pytest.fail("was predicted"))
    assert evaluation_script.main(["--version=any", "--presence_threshold=0.4"]) == 2
    assert "presence_threshold needs a model that answers every class" in complaint(capsys)


def test_a_missing_model_folder_is_said_in_one_line(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(evaluation_script, "open_list", lambda *_: {})
    assert evaluation_script.main([f"--version={tmp_path / 'nowhere'}"]) == 2
    assert "nowhere" in complaint(capsys)


# -------------------------------------------------------------------------------------------- chat


def test_one_complex_question_prints_the_answer_and_writes_masks_and_overlay(
    knowing, street, tmp_path, capsys
):
    flags = ["--version=any", f"--image={street}", f"--vis_save_path={tmp_path / 'out'}"]
    assert chat.main([*flags, "--classes", "grass, sky ,dog, Sky"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "grass [SEG], sky [SEG], dog [NEG]."
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["street_mask_1_grass.png", "street_mask_2_sky.png", "street_overlay.png"]
    mask = np.asarray(Image.open(tmp_path / "out" / "street_mask_2_sky.png"))
    assert mask.shape == (20, 30)
    assert (mask[:10] == 255).all()
    assert (mask[10:] == 0).all()


def test_a_question_in_words_is_answered_with_a_mask_or_without(knowing, street, tmp_path, capsys):
    flags = ["--version=any", f"--image={street}", f"--vis_save_path={tmp_path / 'out'}"]
    assert chat.main([*flags, "--prompt", "Where is the sky?"]) == 0
    assert capsys.readouterr().out.startswith("Sure, it is [SEG].")
    assert (tmp_path / "out" / "street_mask_1.png").is_file()
    (tmp_path / "out" / "street_mask_1.png").unlink()
    assert chat.main([*flags, "--prompt", "Where is the dog?"]) == 0
    assert "[NEG]" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["street_overlay.png"]


def test_masks_of_a_generated_answer_have_the_names_that_the_user_used(knowing, street, monkeypatch):
    masks = torch.ones(2, 20, 30)
    monkeypatch.setattr(
        KnowingModel,
        "chat",
        lambda *_, **__: answer_of("Red car [SEG], dog [NEG], sky [SEG].", masks),
    )
    answer = ask_in_words(knowing, None, "Can you segment the red car, dog, sky in this image?", Asking())
    assert answer.names == ("Red car", "sky")
    assert answer.absent == ("dog",)
    assert ask_in_words(knowing, None, "?", Asking()).names == ("", "")


def test_a_format_without_a_token_for_absent_classes_names_only_what_is_there(knowing, monkeypatch):
    monkeypatch.setattr(KnowingModel, "processor", SimpleNamespace(format=SequenceFormat.named("lisa")))
    answer = ask_classes(knowing, np.zeros((4, 4, 3), np.uint8), ["dog", "sky"], Asking())
    assert answer.text == "sky [SEG]."
    assert answer.absent == ("dog",)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--image=no.png", "--prompt=hi"], "no.png does not exist; pass an image file"),
        (["--image=broken.png", "--prompt=hi"], "broken.png: cannot be decoded"),
        (["--image=street.png"], "either --prompt or --classes"),
        (["--image=street.png", "--prompt=hi", "--classes=dog"], "either --prompt or --classes"),
        (["--image=street.png", "--classes= , "], "' , ' has no class name"),
        (["--prompt=hi"], "--prompt needs --image"),
    ],
)
def test_bad_input_of_chat_is_one_line(knowing, street, tmp_path, monkeypatch, capsys, flags, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.png").write_bytes(b"no street")
    assert chat.main(["--version=any", "--vis_save_path=out", *flags]) == 2
    assert message in complaint(capsys)
    assert not (tmp_path / "out").exists()


def test_a_missing_model_for_chat_is_said_in_one_line(tmp_path, capsys):
    assert chat.main([f"--version={tmp_path / 'nowhere'}"]) == 2
    assert "nowhere" in complaint(capsys)


def test_a_conversation_goes_on_after_a_mistake_and_numbers_its_answers(
    knowing, street, tmp_path, monkeypatch, capsys
):
    lines = iter(
        ["missing.png", str(street), "Where is the sky?", ":classes sky, dog", ":image no.png", "", ":quit"]
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
