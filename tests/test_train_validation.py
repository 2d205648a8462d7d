"""Validation in training: whatever moment a run is killed at, the best of all epochs is kept, and nothing is lost."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from deepspeed import DeepSpeedEngine

import train_ds
from model.checkpoints.checkpoint import open_trained
from tests.commands import BASE, QUICK, losses_of, run
from utils.common.command_line import parse_config
from utils.config.training import TrainConfig
from utils.reports.report import Report, Result
from utils.training import checkpoint, saves, validation
from utils.training.log import deciding_score
from utils.training.progress import Score

MEASURED = "semantic.miou of told"
# step -> what its validation gives
SCORES = {step: Score(value=value, measured=MEASURED) for step, value in {1: 0.2, 2: 0.5, 3: 0.3}.items()}
FLAGS = (*QUICK, "--exp_name=run", "--steps_per_epoch=1")


class Killed(BaseException):
    """No program can catch a kill."""


@pytest.fixture
def validated(monkeypatch) -> list[int]:
    """The steps at which the model was validated; a validation gives what SCORES says."""
    steps: list[int] = []

    def validate(engine, *_) -> int:
        steps.append(engine.global_steps)
        return engine.global_steps

    monkeypatch.setattr(train_ds, "open_validation", lambda _: {"told": []})
    monkeypatch.setattr(validation, "validate", validate)
    monkeypatch.setattr(validation, "log_validation", lambda *_: None)
    monkeypatch.setattr(validation, "deciding_score", SCORES.get)
    return steps


def in_validation(patch: pytest.MonkeyPatch) -> None:
    def validate(engine, *_):
        if engine.global_steps == 2:
            raise Killed
        return told(engine)

    told = validation.validate
    patch.setattr(validation, "validate", validate)


def in_the_weights_of(name: str):
    """A kill when half of a save is on disk."""

    def kill(patch: pytest.MonkeyPatch) -> None:
        save = DeepSpeedEngine.save_checkpoint

        def half(self, folder, tag, **options):
            if Path(folder).name == name and tag == "partial_global_step2":
                (Path(folder) / tag).mkdir()
                (Path(folder) / tag / "mp_rank_00_model_states.pt").write_bytes(b"PK")
                raise Killed
            return save(self, folder, tag=tag, **options)

        patch.setattr(DeepSpeedEngine, "save_checkpoint", half)

    return kill


def before_writing(name: str):
    """A kill before a small file replaces its older self."""

    def kill(patch: pytest.MonkeyPatch) -> None:
        write = saves.write_whole

        def write_or_die(path: Path, text: str) -> None:
            if path.as_posix().endswith(name) and "2" in text:
                raise Killed
            write(path, text)

        for module in (saves, checkpoint):
            patch.setattr(module, "write_whole", write_or_die)

    return kill


def while_deleting_the_old(name: str):
    """A kill when half of an older save is gone."""

    def kill(patch: pytest.MonkeyPatch) -> None:
        remove = shutil.rmtree

        def half(path, ignore_errors=False, **options):
            if not ignore_errors and Path(path).parts[-2:] == (name, "global_step1"):
                next(Path(path).glob("*.pt")).unlink()
                raise Killed
            remove(path, ignore_errors=ignore_errors, **options)

        patch.setattr(saves.shutil, "rmtree", half)

    return kill


def before_naming(name: str):
    """A kill when everything is written, and the save does not have its name yet."""

    def kill(patch: pytest.MonkeyPatch) -> None:
        rename = os.rename

        def rename_or_die(source, target):
            if Path(target).parts[-2:] == (name, "global_step2"):
                raise Killed
            rename(source, target)

        patch.setattr(saves.os, "rename", rename_or_die)

    return kill


MOMENTS = {
    "before the newest have their name": before_naming("ckpt_model"),
    "before the best have their name": before_naming("ckpt_best"),
    "before their manifest": before_writing("ckpt_model/partial_global_step2/manifest.json"),
    "in the validation": in_validation,
    "in the newest weights": in_the_weights_of("ckpt_model"),
    "before they are the newest": before_writing("ckpt_model/latest"),
    "while the older weights are deleted": while_deleting_the_old("ckpt_model"),
    "in the best weights": in_the_weights_of("ckpt_best"),
    "before they are the best": before_writing("ckpt_best/latest"),
    "while the older best is deleted": while_deleting_the_old("ckpt_best"),
    "before the validation is noted": before_writing("validation.json"),
}


def saved(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of the only save in a folder."""
    assert [path.name for path in folder.glob("global_step*")] == [(folder / "latest").read_text()]
    return open_trained(folder).weights


@pytest.fixture(scope="module")
def uninterrupted(workspace, tmp_path_factory):
    """A run of three epochs that nobody killed: its losses and its best weights, those of the second."""
    runs = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workspace)
        patch.setattr(train_ds, "open_validation", lambda _: {"told": []})
        patch.setattr(validation, "validate", lambda engine, *_: engine.global_steps)
        patch.setattr(validation, "log_validation", lambda *_: None)
        patch.setattr(validation, "deciding_score", SCORES.get)
        assert run("train_ds", *FLAGS, f"--log_base_dir={runs}", "--epochs=3") == 0
    assert (runs / "run" / "ckpt_best" / "latest").read_text() == "global_step2"
    return losses_of(runs / "run"), saved(runs / "run" / "ckpt_best")


@pytest.mark.parametrize("moment", MOMENTS)
def test_after_a_kill_the_best_is_that_of_a_run_that_was_not_killed(
    moment, uninterrupted, validated, at_work, tmp_path
):
    losses, best = uninterrupted
    folder, flags = tmp_path / "run", [*FLAGS, f"--log_base_dir={tmp_path}"]
    with pytest.MonkeyPatch.context() as patch:
        MOMENTS[moment](patch)
        with pytest.raises(Killed):
            run("train_ds", *flags, "--epochs=3")
    # The second epoch may be all that is left to do: it is validated all the same.
    assert run("train_ds", *flags, "--epochs=2") == 0
    assert (folder / "ckpt_best" / "latest").read_text() == "global_step2"
    assert run("train_ds", *flags, "--epochs=3") == 0
    assert losses_of(folder) == losses
    assert set(validated) == {1, 2, 3}
    assert (folder / "ckpt_best" / "latest").read_text() == "global_step2"
    ours = saved(folder / "ckpt_best")
    assert all(torch.equal(ours[name], value) for name, value in best.items())
    saved(folder / "ckpt_model")
    noted = json.loads((folder / "validation.json").read_text())
    assert noted == {"step": 3, "best_step": 2, "best_score": 0.5, "best_measured": MEASURED}
    count = len(validated)
    assert run("train_ds", *flags, "--epochs=3") == 0  # nothing is left to do
    assert len(validated) == count


def test_a_validation_that_fails_is_logged_and_training_goes_on(
    validated, at_work, tmp_path, monkeypatch, caplog
):
    told = validation.validate

    def fails(engine, *_):
        if engine.global_steps == 1:
            raise RuntimeError("out of memory")
        return told(engine)

    monkeypatch.setattr(validation, "validate", fails)
    assert run("train_ds", *FLAGS, f"--log_base_dir={tmp_path}", "--epochs=2") == 0
    assert "step 1: the validation failed, and training goes on: RuntimeError: out of memory" in caplog.text
    assert [line["step"] for line in losses_of(tmp_path / "run")] == [1, 2]
    assert (tmp_path / "run" / "ckpt_best" / "latest").read_text() == "global_step2"


def test_there_is_a_best_after_the_last_epoch_even_if_no_validation_came_to_a_number(
    validated, at_work, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(validation, "deciding_score", lambda _: None)
    flags = [*FLAGS, f"--log_base_dir={tmp_path}"]
    assert run("train_ds", *flags, "--epochs=2") == 0
    assert "no validation came to a number" in capsys.readouterr().out
    assert (tmp_path / "run" / "ckpt_best" / "latest").read_text() == "global_step2"
    # A number, whichever it is, is better than none.
    monkeypatch.setattr(validation, "deciding_score", {3: Score(value=0.0, measured=MEASURED)}.get)
    assert run("train_ds", *flags, "--epochs=3") == 0
    assert (tmp_path / "run" / "ckpt_best" / "latest").read_text() == "global_step3"


def test_training_validates_on_all_that_is_there(at_work):
    config = parse_config(TrainConfig, [*BASE, "--val_dataset_list=all"])
    found = train_ds.open_validation(config)
    assert {"ade20k|val", "refcoco|unc|testA", "ReasonSeg|test"} <= {*found, "ade20k|val"}
    assert len(found) > 5


def test_scores_of_other_data_are_not_compared(validated, at_work, tmp_path, monkeypatch, capsys):
    flags = [*FLAGS, f"--log_base_dir={tmp_path}"]
    assert run("train_ds", *flags, "--epochs=2") == 0
    capsys.readouterr()
    other = {
        3: Score(value=0.1, measured="reasoning.giou of another"),
        4: Score(value=0.05, measured="reasoning.giou of another"),
    }
    monkeypatch.setattr(validation, "deciding_score", other.get)
    assert run("train_ds", *flags, "--epochs=4") == 0
    said = capsys.readouterr().out
    assert said.count("ckpt_best starts anew") == 1
    assert f"step 3: the best score so far measured {MEASURED}, now it is reasoning.giou of another" in said
    assert (tmp_path / "run" / "ckpt_best" / "latest").read_text() == "global_step3"


@pytest.mark.parametrize(
    "change",
    [
        {"dataset": "cityscapes"},
        {"num_samples": 4},
        {"sections": {"referring": {"ciou": 0.5}}},
        {"per_query": 10},
    ],
)
def test_a_score_says_what_it_measured(change):
    def score(dataset="ade20k", num_samples=24, sections=None, per_query=80):
        result = Result(
            dataset=dataset,
            task="any",
            num_samples=num_samples,
            sections=sections or {"semantic": {"miou": 0.5}},
        )
        return deciding_score(Report(model="", protocol={"classes_per_query": per_query}, results=(result,)))

    assert score() == score()
    assert score(**change).value == score().value
    assert score(**change).measured != score().measured
