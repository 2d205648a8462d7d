"""Rules about continuing a run; tests/test_train.py saves and resumes whole runs."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil

import pytest
import torch
import yaml

from model.checkpoints.manifest import describe_files
from model.errors import UserError
from utils.common.config_files import save_config
from utils.common.files import append_whole
from utils.config.training import TrainConfig
from utils.training.bases import fingerprint
from utils.training.checkpoint import (
    check_files,
    check_run,
    forget_after,
    read_state,
    read_validated,
    resume,
    step_size_of,
)
from utils.training.progress import Progress, Validated
from utils.training.records import last_step
from utils.training.same_run import FREE, OF_OPTIMIZER, check_same_run, manifest_of
from utils.training.saves import ALONE, make_newest


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


def write_manifest(save, config, /, **changes):
    content = {"step": 5, **manifest_of(config), "files": describe_files(save), "settings": {}} | changes
    (save / "manifest.json").write_text(json.dumps(content))


@pytest.mark.parametrize("value", [5, ["llava"], {"a": 1}, True, 1.5])
@pytest.mark.parametrize("name", ["version", "vision_pretrained", "dataset", "started_in"])
def test_settings_of_other_types_are_one_line(name, value, checkpoint, config):
    path = checkpoint / "lasagna" / "run.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {name: value}))
    with pytest.raises(UserError, match=rf"run\.yaml: {name} is a {type(value).__name__}, not a text"):
        check_run(config)


@pytest.mark.parametrize(
    "changes",
    [
        {"config": {"names": [["x"], {}, None], "sha256": "0"}},
        {"config": {"names": "lr"}},
        {"config": [1]},
        {"files": {"../x": {"size": 1}}},
        {"files": {"/etc/hostname": {"size": 1, "sha256": "0"}}},
        {"files": {"./mp_rank_00_model_states.pt": {}}},
        {"files": {"x" * 300: {"size": 1}}},
        {"files": [1]},
        {"step": 7},
    ],
    ids=str,
)
def test_a_manifest_of_other_types_is_passed_over_or_named(changes, checkpoint, config):
    save = checkpoint / "global_step5"
    if "../x" in changes.get("files", ()):
        (checkpoint / "x").write_text("x")
    write_manifest(save, config)
    assert check_run(config) is not None
    for told in changes.get("files", {}).values() if isinstance(changes.get("files"), dict) else ():
        told.update({"size": (save / "mp_rank_00_model_states.pt").stat().st_size} if not told else {})
    write_manifest(save, config, **changes)
    if changes == {"step": 7}:
        return
    with pytest.raises((UserError, OSError)) as caught:
        check_run(config)
    assert "\n" not in str(caught.value)


def test_a_pipe_in_place_of_weights_keeps_nobody_waiting(checkpoint, config):
    weights = checkpoint / "global_step5" / "mp_rank_00_model_states.pt"
    for make in (
        os.mkfifo,
        os.mkdir,
        lambda path: path.symlink_to("/dev/zero"),
        lambda path: path.symlink_to(path),
    ):
        weights.unlink() if weights.is_symlink() or not weights.is_dir() else weights.rmdir()
        make(weights)
        with pytest.raises(UserError, match=r"no whole save \(global_step5: .*mp_rank_00_model_states"):
            check_run(config)


@pytest.mark.parametrize(
    "state", [[1], {"step": 5}, {"dp_world_size": 1}, {"step": "5", "dp_world_size": 1}, 7]
)
def test_a_state_of_another_program_is_named(state, checkpoint, config):
    torch.save(state, checkpoint / "global_step5" / "mp_rank_00_model_states.pt")
    with pytest.raises(UserError, match=r"global_step5: its \*_model_states\.pt does not say at which step"):
        read_state(checkpoint / "global_step5")


def test_a_new_run_replaces_nothing_of_an_earlier_one(checkpoint, config, tmp_path):
    elsewhere = tmp_path / "large disk"
    (checkpoint / "global_step5").rename(elsewhere)
    (checkpoint / "global_step5").symlink_to(elsewhere)
    with pytest.raises(
        UserError, match="global_step5 is no folder but a link or a file, and is not followed"
    ):
        check_run(config)
    (checkpoint / "global_step5").unlink()
    assert check_run(config) is None
    elsewhere.rename(elsewhere.with_name("global_step5"))
    (config.run_dir / "ckpt_best").mkdir()
    elsewhere.with_name("global_step5").rename(config.run_dir / "ckpt_best" / "global_step5")
    with pytest.raises(
        UserError, match=r"ckpt_model holds no save to continue, and .*ckpt_best holds weights"
    ):
        check_run(config)


def test_the_best_weights_of_another_run_are_not_taken_for_this_ones(checkpoint, config):
    best = config.run_dir / "ckpt_best" / "global_step3"
    shutil.copytree(checkpoint / "global_step5", best)
    write_manifest(best, dataclasses.replace(config, lr=1.0))
    assert check_run(config) is not None  # as after --resume_weights_only
    write_manifest(best, dataclasses.replace(config, seed=7))
    with pytest.raises(
        UserError, match="ckpt_best/global_step3: it is of a run with other settings; move it"
    ):
        check_run(config)
    (best / "manifest.json").write_text("damaged")
    assert check_run(config) is not None


@pytest.mark.parametrize(
    "name", ["losses.jsonl", "validation.json", "data.json", "ckpt_model/latest", "ckpt_best/latest"]
)
@pytest.mark.parametrize("put", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)])
def test_what_is_no_file_is_named_before_training(put, name, tmp_path):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    check_files(tmp_path)
    put(tmp_path / name)
    with pytest.raises(UserError, match=rf"{name}: is a .*, not a file; move it elsewhere"):
        check_files(tmp_path)


def test_the_best_is_alone_also_after_a_run_that_began_anew_from_an_older_save(tmp_path):
    for step in (3, 6, 9):
        (tmp_path / f"global_step{step}").mkdir()
    make_newest(tmp_path / "global_step6", keep=1)
    assert {path.name for path in tmp_path.iterdir()} == {"latest", "global_step6", "global_step9"}
    make_newest(tmp_path / "global_step6", keep=ALONE)
    assert {path.name for path in tmp_path.iterdir()} == {"latest", "global_step6"}


@pytest.fixture
def started(tmp_path):
    """A run of files on disk, with a save whose manifest tells them: its settings."""
    for name in ("llava", "clip"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "model.safetensors").write_bytes(name.encode() * 1000)
    (tmp_path / "sam.pth").write_bytes(b"sam" * 1000)
    (tmp_path / "boats").mkdir()
    config = TrainConfig(
        version=str(tmp_path / "llava"), vision_tower=str(tmp_path / "clip"),
        vision_pretrained=str(tmp_path / "sam.pth"), log_base_dir=str(tmp_path), exp_name="exp",
        dataset=f"sem_seg||own_coco:{tmp_path / 'boats'}|anywhere=true",
    )  # fmt: skip
    folder = config.run_dir / "ckpt_model"
    (folder / "lasagna").mkdir(parents=True)
    (folder / "global_step5").mkdir()
    save_config(config, folder / "lasagna" / "run.yaml")
    torch.save({"dp_world_size": 1, "step": 5}, folder / "global_step5" / "mp_rank_00_model_states.pt")
    write_manifest(folder / "global_step5", config)
    fingerprint.cache_clear()
    return config


def test_a_run_goes_on_from_bases_and_data_that_were_moved(started, tmp_path):
    moved = tmp_path / "moved here"
    moved.mkdir()
    for name in ("llava", "clip", "sam.pth", "boats"):
        (tmp_path / name).rename(moved / name)
    elsewhere = dataclasses.replace(
        started, version=str(moved / "llava"), vision_tower=str(moved / "clip"),
        vision_pretrained=str(moved / "sam.pth"),
        dataset=f"sem_seg||own_coco:{moved / 'boats'}|anywhere=true",
    )  # fmt: skip
    assert check_run(elsewhere) is not None
    with pytest.raises(UserError, match="--dataset was"):
        check_run(dataclasses.replace(elsewhere, dataset=f"sem_seg||own_coco:{moved / 'boats'}"))
    with pytest.raises(UserError, match="--vision_tower was"):
        check_run(dataclasses.replace(elsewhere, vision_tower=str(moved / "llava")))
    (tmp_path / "boats").mkdir()  # there is one where the run had it, so this is another one
    with pytest.raises(UserError, match="--dataset was"):
        check_run(elsewhere)


@pytest.mark.parametrize(
    "name", ["llava/model.safetensors", "llava/config.json", "clip/model.safetensors", "sam.pth"]
)
def test_other_weights_under_the_path_of_the_base_are_named(name, started, tmp_path):
    content = bytearray((tmp_path / name).read_bytes())
    content[-1] ^= 1
    (tmp_path / name).write_bytes(content)
    with pytest.raises(
        UserError, match=r"holds other weights than those that run 'exp' was started from; put them"
    ):
        check_run(started)
