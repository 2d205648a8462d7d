"""The end of a run: the best weights, and commands that can be pasted into a shell."""

from __future__ import annotations

import shlex

import pytest

from model.errors import UserError
from utils.config.training import TrainConfig
from utils.training import next_steps
from utils.training.next_steps import as_typed, farewell, free_folder, next_commands
from utils.training.progress import Progress, Validated


def config(tmp_path, **values) -> TrainConfig:
    return TrainConfig(version="a", log_base_dir=str(tmp_path / "my runs"), exp_name="it's", **values)


@pytest.mark.parametrize(
    "words",
    [
        ["python", "test_sem.py", "--version", "a b", "--val_dataset_list", "ade20k,refcoco|unc|val"],
        ["python", "chat.py", "--version", "/" + "long/" * 30],
        [
            "python",
            "merge.py",
            "--weight",
            "it's",
            "--save_path",
            "$HOME/x",
            "--tag",
            "",
            "--precision",
            "fp32",
        ],
    ],
)
def test_a_command_is_what_was_meant_in_lines_that_fit(words):
    lines = as_typed(words)
    assert shlex.split("\n".join(lines).replace("\\\n", " ")) == words
    assert all(len(line) <= 80 or "long/" in line for line in lines)


def test_the_best_weights_are_named_with_step_number_and_metric(tmp_path):
    best = Validated(
        step=4, best_step=2, best_score=0.61234, best_measured="semantic.miou of ade20k, 8 samples"
    )
    lines = farewell(config(tmp_path), Progress(step=4, validated=best)).splitlines()
    assert lines[0] == "best: step 2 with 0.6123, semantic.miou of ade20k, 8 samples, in"
    assert lines[1].endswith("my runs/it's/ckpt_best")
    assert "no validation came to a number" in farewell(config(tmp_path), Progress(step=4))


def test_without_validation_the_newest_weights_are_merged(tmp_path, monkeypatch):
    def missing(*_):
        raise UserError("not there")

    monkeypatch.setattr(next_steps, "open_list", missing)
    commands = next_commands(config(tmp_path, no_eval=True))
    assert [words[1] for words in commands] == ["merge_lora_weights_and_save_hf_model.py", "chat.py"]
    assert commands[0][3].endswith("ckpt_model")
    monkeypatch.setattr(next_steps, "open_list", lambda *_: {})
    assert len(next_commands(config(tmp_path, no_eval=True))) == 3


def test_the_merge_goes_into_a_folder_that_is_not_there(tmp_path):
    assert free_folder(tmp_path / "merged") == tmp_path / "merged"
    for name in ("merged", "merged_2"):
        (tmp_path / name).mkdir()
    assert free_folder(tmp_path / "merged") == tmp_path / "merged_3"
