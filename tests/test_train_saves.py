"""Saves of a training run that are damaged, unfinished or another run's are never continued from, nor merged."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from model.checkpoints.checkpoint import open_trained
from model.checkpoints.sums import verify_sums
from model.write_errors import WriteError
from tests.commands import QUICK, losses_of, run
from utils.training import saves

NEWEST = "global_step4"


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(bytes(content))


def first(pattern: str) -> Callable[[Path], Path]:
    return lambda save: min(save.glob(pattern))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def take_that_of_step_2(save: Path) -> None:
    for path in save.glob("*_optim_states.pt"):
        shutil.copy(save.parent / "global_step2" / path.name, path)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a bit of the weights": lambda save: flip_a_bit(first("*_model_states.pt")(save)),
    "a bit of the optimizer": lambda save: flip_a_bit(first("*_optim_states.pt")(save)),
    "a file that is cut off": lambda save: truncate(first("*_optim_states.pt")(save)),
    "a file that is gone": lambda save: first("*_optim_states.pt")(save).unlink(),
    "the optimizer of another step": take_that_of_step_2,
    "no manifest": lambda save: (save / "manifest.json").unlink(),
    "an empty manifest": lambda save: (save / "manifest.json").write_text(""),
    "the manifest of another step": lambda save: shutil.copy(
        save.parent / "global_step2" / "manifest.json", save
    ),
}


@pytest.fixture(scope="module")
def two_saves(workspace, tmp_path_factory) -> Path:
    """The folder of a run of four steps that kept the saves of steps 2 and 4."""
    runs = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workspace)
        assert run("train_ds", *QUICK, f"--log_base_dir={runs}", "--exp_name=run", "--keep_last=2") == 0
    names = {path.name for path in (runs / "run" / "ckpt_model").iterdir() if path.suffix != ".py"}
    assert names == {"global_step2", NEWEST, "lasagna", "latest"}
    return runs / "run"


@pytest.fixture
def copied(two_saves, tmp_path) -> Path:
    shutil.copytree(two_saves, tmp_path / "run")
    return tmp_path / "run"


def go_on(folder: Path, *more: str) -> int:
    return run("train_ds", *QUICK, f"--log_base_dir={folder.parent}", f"--exp_name={folder.name}", *more)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_save_is_passed_over_and_the_run_is_what_it_was(damage, two_saves, copied, at_work, caplog):
    DAMAGES[damage](copied / "ckpt_model" / NEWEST)
    assert go_on(copied, "--keep_last=2") == 0
    assert f"{NEWEST} is passed over: " in caplog.text
    assert losses_of(copied) == losses_of(two_saves)
    ours, theirs = (open_trained(place / "ckpt_model").weights for place in (copied, two_saves))
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())


@pytest.mark.parametrize("damage", ["a bit of the weights", "no manifest"])
def test_a_damaged_save_is_not_merged(damage, copied, at_work, tmp_path, capsys, caplog):
    DAMAGES[damage](copied / "ckpt_model" / NEWEST)
    flags = ["--weight", copied / "ckpt_model", "--save_path", tmp_path / "merged", "--precision=fp32"]
    if damage != "no manifest":
        assert run("merge_lora_weights_and_save_hf_model", *flags, "--tag", NEWEST) == 2
        assert "SHA-256" in capsys.readouterr().err.splitlines()[-1]
    assert run("merge_lora_weights_and_save_hf_model", *flags) == 0
    assert f"{NEWEST} is passed over" in caplog.text


@pytest.mark.parametrize(
    "content", [None, "", "../../other/ckpt_model/global_step9", "/tmp", "global_step9", ".."]
)
def test_whatever_latest_says_the_newest_whole_save_is_continued(content, copied, at_work, two_saves):
    latest = copied / "ckpt_model" / "latest"
    latest.unlink() if content is None else latest.write_text(content)
    weights = open_trained(copied / "ckpt_model").weights
    assert go_on(copied, "--keep_last=2") == 0
    assert losses_of(copied) == losses_of(two_saves)
    assert sorted(path.name for path in (copied / "ckpt_model").glob("global_step*")) == [
        "global_step2",
        NEWEST,
    ]
    assert all(
        torch.equal(value, weights[name])
        for name, value in open_trained(two_saves / "ckpt_model").weights.items()
    )


def test_without_a_whole_save_nothing_is_deleted_and_every_reason_is_named(copied, at_work, capsys):
    for save in (copied / "ckpt_model").glob("global_step*"):
        flip_a_bit(first("*_model_states.pt")(save))
    before = sorted(copied.rglob("*"))
    assert go_on(copied) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    for part in ("no whole save", "global_step4: mp_rank_00_model_states.pt", "global_step2: ", "--exp_name"):
        assert part in line
    assert "remove" not in line
    assert sorted(copied.rglob("*")) == before


def test_the_save_of_a_run_with_other_settings_is_passed_over(copied, at_work, caplog):
    other = ("--exp_name=other", "--lr=5e-4", "--epochs=3")
    assert run("train_ds", *QUICK, f"--log_base_dir={copied.parent}", *other) == 0
    shutil.copytree(
        copied.parent / "other" / "ckpt_model" / "global_step6", copied / "ckpt_model" / "global_step6"
    )
    assert go_on(copied) == 0
    assert "global_step6 is passed over: it is of a run with other settings" in caplog.text


@pytest.mark.parametrize("content", [None, ""])
def test_a_run_without_its_run_yaml_is_known_by_its_manifest(content, copied, at_work, capsys):
    settings = copied / "ckpt_model" / "lasagna" / "run.yaml"
    settings.unlink() if content is None else settings.write_text(content)
    assert go_on(copied, "--lr=0.5") == 2
    assert "other settings" in capsys.readouterr().err.splitlines()[-1]
    assert go_on(copied, "--epochs=3") == 0
    assert settings.stat().st_size > 0
    assert len(losses_of(copied)) == 6


def test_weights_that_are_not_finite_are_not_continued(copied, at_work, capsys, monkeypatch):
    monkeypatch.setattr("utils.training.checkpoint.not_finite", lambda _: ["lm_head.weight"])
    assert go_on(copied) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert f"{NEWEST} holds weights that are not finite: lm_head.weight" in line


def test_saves_between_epochs_continue_to_the_last_bit(two_saves, at_work, tmp_path):
    """Three saves an epoch; stopped after the third step, in the middle of the second epoch."""
    flags = [*QUICK, f"--log_base_dir={tmp_path}", "--exp_name=often", "--save_every_steps=1"]
    with pytest.MonkeyPatch.context() as patch:
        from utils.training import loop

        log_step = loop.log_step

        def log_or_stop(at: int, *arguments, **named):
            if at == 4:
                raise KeyboardInterrupt
            return log_step(at, *arguments, **named)

        patch.setattr(loop, "log_step", log_or_stop)
        with pytest.raises(KeyboardInterrupt):
            run("train_ds", *flags)
    folder = tmp_path / "often"
    assert (folder / "ckpt_model" / "latest").read_text() == "global_step3"
    assert run("train_ds", *flags) == 0
    assert losses_of(folder) == losses_of(two_saves)
    ours, theirs = (open_trained(place / "ckpt_model").weights for place in (folder, two_saves))
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    counted = json.loads((folder / "data.json").read_text())
    assert counted == json.loads((two_saves / "data.json").read_text())


def fail_to_write(monkeypatch: pytest.MonkeyPatch, times: int) -> list[float]:
    """The disk is full for so many tries to write a save; returns the waits."""
    from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine

    save, waits, left = TorchCheckpointEngine.save, [], iter(range(times))

    def full(self, state_dict, path):
        if next(left, None) is not None:
            Path(path).write_bytes(b"PK")
            raise RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed")
        return save(self, state_dict, path)

    monkeypatch.setattr(TorchCheckpointEngine, "save", full)
    monkeypatch.setattr(saves.time, "sleep", waits.append)
    return waits


def test_a_full_disk_is_waited_for(at_work, tmp_path, monkeypatch, two_saves, caplog):
    waits = fail_to_write(monkeypatch, 3)
    flags = [*QUICK, f"--log_base_dir={tmp_path}", "--exp_name=full"]
    assert run("train_ds", *flags) == 0
    assert waits
    assert "trying again for --disk_patience 5 minutes" in caplog.text
    assert losses_of(tmp_path / "full") == losses_of(two_saves)


def test_a_disk_that_stays_full_ends_the_run_with_one_line_and_no_half_file(
    copied, at_work, monkeypatch, capsys
):
    fail_to_write(monkeypatch, 10**6)
    assert go_on(copied, "--epochs=3", "--disk_patience=0") == 2
    line = capsys.readouterr().err.splitlines()[-1]
    for part in ("train_ds.py: ", "cannot be written", "--disk_patience 0"):
        assert part in line
    names = sorted(path.name for path in (copied / "ckpt_model").iterdir())
    assert not [name for name in names if name.startswith("partial")]
    assert NEWEST in names
    assert open_trained(copied / "ckpt_model").weights


def test_a_full_disk_is_waited_for_by_the_log_as_well(at_work, tmp_path, monkeypatch, two_saves, caplog):
    fail_to_append(monkeypatch, 3)
    monkeypatch.setattr("utils.training.records.RETRY_SECONDS", 0.01)
    monkeypatch.setattr(saves, "RETRY_SECONDS", 0.01)
    assert run("train_ds", *QUICK, f"--log_base_dir={tmp_path}", "--exp_name=full") == 0
    assert "losses.jsonl cannot be written (No space left on device)" in caplog.text
    assert losses_of(tmp_path / "full") == losses_of(two_saves)


def test_a_log_that_cannot_be_written_ends_the_run_with_one_line(copied, at_work, monkeypatch, capsys):
    before = (copied / "losses.jsonl").read_text()
    fail_to_append(monkeypatch, 10**6)
    assert go_on(copied, "--epochs=3", "--disk_patience=0") == 2
    line = capsys.readouterr().err.splitlines()[-1]
    for part in ("train_ds.py: ", "losses.jsonl cannot be written", "--disk_patience 0"):
        assert part in line
    assert (copied / "losses.jsonl").read_text() == before
    assert open_trained(copied / "ckpt_model").weights


@pytest.mark.parametrize("name", ["global_step4/mp_rank_00_model_states.pt", "lasagna/tokenizer.json"])
def test_a_save_is_compared_with_its_manifest_on_request(name, copied, at_work, tmp_path, capsys):
    flags = ["--weight", copied, "--save_path", tmp_path / "merged", "--precision=fp32", "--verify"]
    flip_a_bit(copied / "ckpt_model" / name)
    assert run("merge_lora_weights_and_save_hf_model", *flags) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert f"{name.removeprefix('global_step4/')}: expected SHA-256" in line
    flip_a_bit(copied / "ckpt_model" / name)
    assert run("merge_lora_weights_and_save_hf_model", *flags) == 0
    verify_sums(tmp_path / "merged", "--version")


def fail_to_append(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """The disk is full for so many tries to append to losses.jsonl."""
    from utils.training import records

    append, left = records.append_whole, iter(range(times))

    def full(path, text):
        if next(left, None) is not None:
            raise WriteError(errno.ENOSPC, f"{path} cannot be written (No space left on device); make room")
        append(path, text)

    monkeypatch.setattr(records, "append_whole", full)
