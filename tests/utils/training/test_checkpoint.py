"""Rules about continuing a run; tests/test_train.py saves and resumes whole runs."""

from __future__ import annotations

import dataclasses
import json
import os

import pytest
import torch

from model.errors import UserError
from utils.common.config_files import save_config
from utils.common.files import append_whole
from utils.config.training import TrainConfig
from utils.training.checkpoint import (
    check_run,
    forget_after,
    read_state,
    read_validated,
    resume,
    step_size_of,
)
from utils.training.progress import Progress, Validated
from utils.training.records import last_step
from utils.training.same_run import FREE, OF_OPTIMIZER, check_same_run


@pytest.fixture
def config(tmp_path) -> TrainConfig:
    return TrainConfig(version="llava", log_base_dir=str(tmp_path), exp_name="exp")


@pytest.fixture
def checkpoint(config):
    """A folder as DeepSpeed leaves it, without weights: (folder, config)."""
    folder = config.run_dir / "ckpt_model"
    (folder / "lasagna").mkdir(parents=True)
    (folder / "global_step5").mkdir()
    (folder / "latest").write_text("global_step5")
    save_config(config, folder / "lasagna" / "run.yaml")
    torch.save({"dp_world_size": 1, "step": 5}, folder / "global_step5" / "mp_rank_00_model_states.pt")
    return folder


def test_a_new_run_may_start(config):
    assert check_run(config) is None
    assert resume(None, config, None) == Progress()


def test_weights_only_needs_a_run_to_continue(config):
    with pytest.raises(ValueError, match=r"--resume_weights_only: .*ckpt_model holds no save to continue"):
        check_run(dataclasses.replace(config, resume_weights_only=True))
    with pytest.raises(ValueError, match="--no_auto_resume forbids"):
        dataclasses.replace(config, resume_weights_only=True, auto_resume=False)


def test_a_run_continues_with_the_settings_it_had(checkpoint, config):
    check_run(config)


def test_every_setting_is_either_free_or_kept(checkpoint, config):
    """A setting that is new is kept unless somebody decides otherwise."""
    assert set(FREE) <= {entry.name for entry in dataclasses.fields(TrainConfig)}
    for name in (
        "lr",
        "version",
        "dataset",
        "num_all_classes",
        "order_following",
        "lora_r",
        "seed",
        "precision",
        "zero_stage",
    ):
        assert name not in FREE
    longer = dataclasses.replace(config, epochs=99, workers=0, dataset_dir="/elsewhere", no_eval=True)
    check_run(longer)


def test_all_changed_settings_are_named_with_both_values(checkpoint, config):
    changed = dataclasses.replace(config, lr=1.0, sequence_augmentation=False)
    with pytest.raises(
        ValueError, match=r"--sequence_augmentation was True, is False; --lr was 0.0003, is 1.0"
    ):
        check_run(changed)


def test_settings_that_an_older_version_did_not_know_are_no_obstacle(checkpoint, config):
    path = checkpoint / "lasagna" / "run.yaml"
    path.write_text("version: llava\n")
    check_same_run(config, path)


def test_a_checkpoint_without_its_settings_or_files_says_so(checkpoint, config):
    settings = checkpoint / "lasagna" / "run.yaml"
    content = settings.read_text()
    for rest in ("", None):
        settings.write_text("") if rest == "" else settings.unlink()
        with pytest.raises(ValueError, match=r"run.yaml is missing or empty.*--exp_name"):
            check_run(config)
    settings.write_text(content)
    next(checkpoint.glob("*/*_model_states.pt")).unlink()
    with pytest.raises(
        ValueError, match=r"no whole save \(global_step5: it has no \*_model_states.pt"
    ) as caught:
        check_run(config)
    assert "remove" not in str(caught.value)


def test_a_save_of_an_older_version_knows_its_step_by_its_settings(checkpoint, config):
    found = check_run(dataclasses.replace(config, batch_size=7))
    before = step_size_of(dataclasses.replace(config, batch_size=7), found)
    assert (before.images, before.batch_size, before.num_processes) == (20, 2, 1)


@pytest.mark.parametrize("name", OF_OPTIMIZER)
def test_settings_of_the_optimizer_change_only_with_a_fresh_one(name, checkpoint, config):
    changed = dataclasses.replace(
        config, **{name: type(getattr(config, name))(getattr(config, name) / 2 + 0.25)}
    )
    if changed == config:
        changed = dataclasses.replace(config, **{name: getattr(config, name) + 1})
    with pytest.raises(ValueError, match=rf"--{name} was .*--resume_weights_only continues"):
        check_run(changed)
    assert check_run(dataclasses.replace(changed, resume_weights_only=True)) is not None
    with pytest.raises(ValueError, match="--seed was 0, is 1"):
        check_run(dataclasses.replace(changed, resume_weights_only=True, seed=1))


def test_a_checkpoint_with_code_in_it_is_not_run(checkpoint):
    torch.save({"dp_world_size": print}, checkpoint / "global_step5" / "mp_rank_00_model_states.pt")
    with pytest.raises(Exception, match="print"):
        read_state(checkpoint / "global_step5")


def test_losses_after_the_checkpoint_are_forgotten(tmp_path):
    log = tmp_path / "losses.jsonl"
    forget_after(log, 3)  # there is none yet
    assert not log.exists()
    lines = [json.dumps({"step": step, "total": 1.5}) + "\n" for step in (1, 2, 3, 4)]
    log.write_text("".join(lines) + '{"step": 5, "to')
    forget_after(log, 3)
    assert log.read_text() == "".join(lines[:3])
    forget_after(log, 0)
    assert log.read_text() == ""
    assert [path.name for path in tmp_path.iterdir()] == ["losses.jsonl"]


@pytest.mark.parametrize(
    "line", ["[1]", "5", "null", '{"step": "x"}', '{"step": null}', '{"step": 1e999}', "[" * 100_000]
)
def test_lines_of_others_in_the_losses_are_forgotten_too(line, tmp_path):
    log = tmp_path / "losses.jsonl"
    log.write_text('{"step": 1}\n' + line + "\n")
    assert last_step(log) == 1
    forget_after(log, 3)
    assert log.read_text() == '{"step": 1}\n'


@pytest.mark.parametrize("put", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)])
def test_losses_are_written_to_a_file_and_to_nothing_else(put, tmp_path):
    log = tmp_path / "losses.jsonl"
    put(log)
    for use in (last_step, lambda path: forget_after(path, 3), lambda path: append_whole(path, "{}")):
        with pytest.raises(UserError, match=r"losses\.jsonl: is a .*, not a file; move it elsewhere"):
            use(log)


@pytest.mark.parametrize(
    "noted",
    [
        '{"step": "x"}',
        '{"step": null}',
        '{"step": true}',
        '{"best_step": [1]}',
        '{"more": 1}',
        "[" * 100_000,
        "7",
    ],
)
def test_a_record_of_validations_that_cannot_be_one_is_written_anew(noted, checkpoint, config, caplog):
    (checkpoint.parent / "validation.json").write_text(noted)
    assert read_validated(config, 5) == Validated()
    assert "cannot be read and is written anew" in caplog.text


@pytest.mark.parametrize("put", [os.mkfifo, os.mkdir, lambda path: os.symlink("nowhere", path)])
def test_what_is_no_file_is_no_manifest_of_an_older_version(put, checkpoint, config):
    assert check_run(config) is not None  # a save of an older version has none
    put(checkpoint / "global_step5" / "manifest.json")
    with pytest.raises(UserError, match=r"no whole save \(global_step5: .*manifest\.json"):
        check_run(config)
