"""train_ds.py when numbers are not finite: the weights stay good, and a run that is lost ends with exit code 3."""

from __future__ import annotations

import json
import math

import pytest
import torch

from model.checkpoints.checkpoint import open_trained
from tests.commands import QUICK, run
from utils.training import loop, validation


def strict_lines(folder) -> list[dict]:
    """losses.jsonl as a reader sees it that knows JSON alone."""

    def refuse(name: str):
        raise AssertionError(f"{name} is not JSON")

    return [
        json.loads(line, parse_constant=refuse) for line in (folder / "losses.jsonl").read_text().splitlines()
    ]


def lose(monkeypatch: pytest.MonkeyPatch, *steps: int) -> None:
    """The losses of these micro-batches, counted from 1, become NaN."""
    see, count = loop.Watch.see, iter(range(1, 10**6))

    def see_nan(self, batch, loss):
        return see(self, batch, loss * math.nan if next(count) in steps else loss)

    monkeypatch.setattr(loop.Watch, "see", see_nan)


def test_a_learning_rate_that_ruins_the_weights_ends_the_run_and_saves_nothing_ruined(
    at_work, tmp_path, capsys
):
    flags = [*QUICK, f"--log_base_dir={tmp_path}", "--exp_name=lost", "--lr=1e30", "--epochs=1",
             "--steps_per_epoch=12", "--max_bad_steps=4", "--warmup_steps=2"]  # fmt: skip
    assert run("train_ds", *flags) == 3
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("train_ds.py: step ")
    assert "4 steps in a row" in last
    lines = strict_lines(tmp_path / "lost")
    assert lines[-1]["total"] is None
    assert lines[-1]["applied"] is False
    assert not list(tmp_path.rglob("*_model_states.pt"))


def test_single_bad_steps_are_skipped_and_the_save_waits_for_a_good_one(
    at_work, tmp_path, monkeypatch, caplog
):
    """The last step of the first epoch is bad; its save and validation follow the next good step."""
    validated: list[int] = []
    monkeypatch.setattr("train_ds.open_validation", lambda _: {"told": []})
    monkeypatch.setattr(validation, "validate", lambda engine, *_: validated.append(engine.global_steps))
    monkeypatch.setattr(validation, "log_validation", lambda *_: None)
    monkeypatch.setattr(validation, "deciding_score", lambda _: None)
    lose(monkeypatch, 2)
    flags = [*QUICK, f"--log_base_dir={tmp_path}", "--exp_name=once", "--epochs=2"]
    assert run("train_ds", *flags) == 0
    folder = tmp_path / "once"
    assert [line.get("applied", True) for line in strict_lines(folder)] == [True, False, True, True]
    assert validated == [3, 4]
    assert "step 2: the loss is not finite" in caplog.text
    assert ".jpg" in caplog.text.split("Samples: ")[1]
    state = torch.load(next((folder / "ckpt_model").rglob("*_model_states.pt")), weights_only=False)
    assert state["bad_steps"] == 1
    assert open_trained(folder / "ckpt_model").weights


def test_a_run_that_ends_with_skipped_steps_keeps_its_last_good_save(at_work, tmp_path, monkeypatch, capsys):
    lose(monkeypatch, 4)
    flags = [*QUICK, f"--log_base_dir={tmp_path}", "--exp_name=end", "--epochs=2"]
    assert run("train_ds", *flags) == 3
    assert "ends at step 4 with 1 skipped steps" in capsys.readouterr().err.splitlines()[-1]
    assert (tmp_path / "end" / "ckpt_model" / "latest").read_text() == "global_step2"


def test_weights_that_are_not_finite_are_not_merged(trained_run, at_work, tmp_path, capsys):
    weights = dict(open_trained(trained_run.folder / "ckpt_model").weights)
    name = next(name for name in weights if name.endswith("seg_projector.0.weight"))
    weights[name] = weights[name].clone()
    weights[name][0, 0] = torch.nan
    folder = tmp_path / "run"
    folder.mkdir()
    torch.save(weights, folder / "pytorch_model.bin")
    (folder / "lasagna").symlink_to(trained_run.folder / "ckpt_model" / "lasagna")
    flags = ["--weight", folder / "pytorch_model.bin", "--save_path", tmp_path / "merged"]
    assert run("merge_lora_weights_and_save_hf_model", *flags) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "not finite" in line
    assert name in line
    assert not (tmp_path / "merged").exists()


def test_a_merged_weight_that_leaves_the_number_format_is_named(trained_run, at_work, tmp_path, capsys):
    weights = dict(open_trained(trained_run.folder / "ckpt_model").weights)
    name = next(name for name in weights if name.endswith("seg_projector.0.weight"))
    weights[name] = torch.full_like(weights[name], 1e6)  # float16 ends at 65504
    folder = tmp_path / "run"
    folder.mkdir()
    torch.save(weights, folder / "pytorch_model.bin")
    (folder / "lasagna").symlink_to(trained_run.folder / "ckpt_model" / "lasagna")
    flags = ["--weight", folder / "pytorch_model.bin", "--save_path", tmp_path / "merged", "--precision=fp16"]
    assert run("merge_lora_weights_and_save_hf_model", *flags) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "not finite" in line
    assert "seg_projector.0.weight" in line
    assert not (tmp_path / "merged").exists()
