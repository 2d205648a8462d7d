"""train_ds.py on the toy world: what trains, what is kept, and how runs are stopped, continued and refused."""

from __future__ import annotations

import json
import math
import os
import shutil
from dataclasses import replace

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train_ds
from model.checkpoints.checkpoint import open_trained
from model.checkpoints.layouts import deepspeed
from model.lora import trainable_pattern
from tests.commands import QUICK, complaint, losses_of, run
from tests.stopped_runs import stop_before
from utils.common.command_line import parse_config
from utils.common.settings import path_settings
from utils.config.training import TrainConfig
from utils.training import validation
from utils.training.profile import PARTS
from utils.training.progress import Score

# ------------------------------------------------------------------------------------- one whole run


def test_only_the_parts_named_in_the_recipe_train(trained_run, at_work):
    before, _ = train_ds.build_model(parse_config(TrainConfig, trained_run.argv))
    start = dict(before.named_parameters())
    changed = {
        name for name, now in trained_run.module.named_parameters() if not torch.equal(now, start[name])
    }
    assert all(trainable_pattern(before).fullmatch(name) for name in changed)
    parts = (
        "lora_A",
        "lora_B",
        "embed_tokens",
        "lm_head",
        "seg_projector.0",
        "seg_projector.2",
        "mask_decoder",
    )
    for part in parts:
        assert any(part in name for name in changed), part


def test_the_checkpoint_holds_the_trainable_weights_and_what_it_takes_to_rebuild(trained_run, at_work):
    checkpoint = trained_run.folder / "ckpt_model"
    trainable = {name for name, p in trained_run.module.named_parameters() if p.requires_grad}
    buffers = {name for name, _ in trained_run.module.named_buffers()}
    state = torch.load(checkpoint / "global_step4" / "mp_rank_00_model_states.pt", weights_only=False)
    assert trainable <= set(state["module"]) <= trainable | buffers
    weights = deepspeed.read(checkpoint)
    assert trainable <= set(weights) <= trainable | buffers
    for name, now in trained_run.module.named_parameters():
        if name in trainable:
            torch.testing.assert_close(weights[name].to(now.dtype), now.detach())
    assert sorted(path.name for path in checkpoint.glob("global_step*")) == ["global_step4"]
    assert (checkpoint / "zero_to_fp32.py").is_file()
    settings = {path.name for path in (checkpoint / "lasagna").iterdir()}
    assert {"config.json", "tokenizer.json", "processor_config.json", "run.yaml"} <= settings
    saved = parse_config(TrainConfig, ["--config", str(checkpoint / "lasagna" / "run.yaml")])
    given = parse_config(TrainConfig, trained_run.argv)
    # Every path of this run is there, and is saved so that it is found from any folder.
    paths = {name: os.path.abspath(path) for name in path_settings(given) if (path := getattr(given, name))}
    assert saved == replace(given, **paths)


def test_losses_are_logged_by_global_step_in_both_logs(trained_run):
    lines = losses_of(trained_run.folder)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    for line in lines:
        assert all(math.isfinite(value) for value in line.values())
        parts = line["cross_entropy"] + line["mask_bce"] + line["dice"]
        assert line["total"] == pytest.approx(parts, rel=1e-2)  # as weighted, rounded to bf16
    board = EventAccumulator(str(trained_run.folder)).Reload()
    points = [(point.step, point.value) for point in board.Scalars("train/total")]
    assert points == [(line["step"], pytest.approx(line["total"])) for line in lines]
    for tag in (
        "val/ade20k/semantic/miou",
        "val/refcoco|unc|val/referring/ciou",
        "val/ReasonSeg|val/reasoning/giou",
    ):
        assert [point.step for point in board.Scalars(tag)] == [2, 4]


# ------------------------------------------------------------------------- stopped, and started again


def test_an_interrupted_run_that_is_continued_is_the_uninterrupted_run(trained_run, at_work, tmp_path):
    """With dropout, in bf16; validation in one and not in the other changes nothing."""
    flags = [*trained_run.argv, "--no_eval", f"--log_base_dir={tmp_path}", "--exp_name=stopped"]
    with pytest.MonkeyPatch.context() as patch:
        stop_before(patch, step=4)  # one step after the last checkpoint
        with pytest.raises(KeyboardInterrupt):
            run("train_ds", *flags)
    folder = tmp_path / "stopped"
    assert [line["step"] for line in losses_of(folder)] == [1, 2, 3]
    (folder / "losses.jsonl").open("a").write('{"step": 4, "tot')  # killed while writing
    assert run("train_ds", *flags) == 0
    assert losses_of(folder) == losses_of(trained_run.folder)
    board = EventAccumulator(str(folder)).Reload()
    assert [point.step for point in board.Scalars("train/total")] == [1, 2, 3, 4]
    ours, theirs = (deepspeed.read(place / "ckpt_model") for place in (folder, trained_run.folder))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_what_became_of_the_data_is_counted_over_a_restart(at_work, tmp_path, capsys):
    world = tmp_path / "dataset"
    shutil.copytree(at_work / "dataset", world)
    for label in sorted((world / "ade20k/annotations/training").iterdir())[::2]:
        label.write_bytes(b"")
    flags = [*QUICK, f"--dataset_dir={world}", "--dataset=sem_seg", "--sem_seg_data=ade20k",
             f"--log_base_dir={tmp_path}", "--exp_name=counted",
             "--num_all_classes=40", "--model_max_length=110"]  # fmt: skip
    folder = tmp_path / "counted"

    def summary() -> dict:
        return json.loads((folder / "data.json").read_text())

    assert run("train_ds", *flags, "--epochs=1") == 0
    first = summary()
    assert run("train_ds", *flags, "--epochs=4") == 0
    whole = summary()
    assert whole["samples"] == 4 * first["samples"] > 0
    logged = losses_of(folder)
    accumulation = whole["samples"] / len(logged)
    assert min(whole["unusable"], whole["shortened"]) > 0
    assert whole["unusable"] == pytest.approx(sum(line["skipped"] for line in logged) * accumulation)
    assert whole["shortened"] == pytest.approx(sum(line["shortened"] for line in logged) * accumulation)
    assert whole["classes_left_out"] >= whole["shortened"]
    assert all("cannot be decoded (the file is empty)" in item for item in whole["first"])
    printed = capsys.readouterr().out
    assert f"{whole['samples']} samples; {whole['unusable']} unusable items replaced" in printed

    # Every draw counts, also those before the restart.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("utils.data.counts.MIN_DRAWS", 1)
        assert run("train_ds", *flags, "--epochs=5") == 2
    last = capsys.readouterr().err.splitlines()[-1]
    for part in (
        "draws could not be used, more than --max_bad_fraction 0.01",
        "ADE_train_",
        "utils.data.tools.check",
    ):
        assert part in last
    assert run("train_ds", *flags, "--epochs=5", "--max_bad_fraction=1") == 0
    assert summary()["samples"] == 5 * first["samples"]


@pytest.mark.parametrize(
    "change",
    [
        "--lr=0.5",
        "--num_all_classes=5",
        "--no_order_following",
        "--sem_seg_data=ade20k",
        "--seed=1",
        "--lora_r=4",
        "--zero_stage=1",
        "--version=assets/toy/clip",
    ],
)
def test_a_run_is_not_continued_with_other_settings(change, trained_run, at_work, capsys):
    before = sorted(trained_run.folder.rglob("*"))
    assert run("train_ds", *trained_run.argv, change) == 2
    name = change.removeprefix("--no_").removeprefix("--").split("=")[0]
    complaint(capsys, "'LaSagnA-7b' was started with other settings", f"--{name} was", "--exp_name")
    assert sorted(trained_run.folder.rglob("*")) == before


def test_a_run_is_not_continued_unasked(trained_run, at_work, capsys):
    assert run("train_ds", *trained_run.argv, "--no_auto_resume") == 2
    complaint(capsys, "holds an earlier run", "--exp_name")


def test_a_finished_run_goes_on_when_it_gets_more_epochs(at_work, tmp_path):
    flags = [*QUICK, f"--log_base_dir={tmp_path}", "--exp_name=longer"]
    assert run("train_ds", *flags, "--epochs=1") == 0
    assert run("train_ds", *flags, "--epochs=2", "--workers=1") == 0
    assert [line["step"] for line in losses_of(tmp_path / "longer")] == [1, 2, 3, 4]
    assert run("train_ds", *flags, "--epochs=1") == 0  # nothing is left to do
    assert [line["step"] for line in losses_of(tmp_path / "longer")] == [1, 2, 3, 4]


def test_what_a_run_without_a_checkpoint_logged_is_forgotten(at_work, tmp_path):
    flags = [*QUICK, f"--log_base_dir={tmp_path}", "--exp_name=early", "--epochs=1"]
    with pytest.MonkeyPatch.context() as patch:
        stop_before(patch, step=2)
        with pytest.raises(KeyboardInterrupt):
            run("train_ds", *flags)
    assert run("train_ds", *flags) == 0
    assert [line["step"] for line in losses_of(tmp_path / "early")] == [1, 2]


def test_the_best_checkpoint_is_kept_by_validation_over_a_restart(at_work, tmp_path, monkeypatch):
    scores = iter(Score(value=value, measured="told") for value in (0.2, 0.5, 0.3, 0.4, math.nan, 0.6))
    monkeypatch.setattr(train_ds, "open_validation", lambda _: {"told": []})
    monkeypatch.setattr(validation, "validate", lambda *_: None)
    monkeypatch.setattr(validation, "deciding_score", lambda _: next(scores))
    flags = [*QUICK, f"--log_base_dir={tmp_path}", "--exp_name=best", "--steps_per_epoch=1"]

    def kept(folder: str) -> str:
        place = tmp_path / "best" / folder
        assert [path.name for path in place.glob("global_step*")] == [(place / "latest").read_text()]
        return (place / "latest").read_text()

    assert run("train_ds", *flags, "--epochs=3") == 0
    assert (kept("ckpt_model"), kept("ckpt_best")) == ("global_step3", "global_step2")
    assert run("train_ds", *flags, "--epochs=5") == 0
    assert (kept("ckpt_model"), kept("ckpt_best")) == ("global_step5", "global_step2")
    assert run("train_ds", *flags, "--epochs=6") == 0
    assert (kept("ckpt_model"), kept("ckpt_best")) == ("global_step6", "global_step6")
    assert open_trained(tmp_path / "best" / "ckpt_best").weights


# ----------------------------------------------------------------------------- speed, and profiles


def test_speed_goes_to_tensorboard_and_a_profile_to_its_folder(at_work, tmp_path, capsys):
    assert run("train_ds", *QUICK, f"--log_base_dir={tmp_path}", "--exp_name=fast", "--profile=1") == 0
    folder = tmp_path / "fast"
    board = EventAccumulator(str(folder)).Reload()
    for name in ("images_per_second", "text_tokens_per_second", "model_tflops_per_second", "memory_gb"):
        points = board.Scalars(f"speed/{name}")
        assert [point.step for point in points] == [1, 2, 3, 4]
        assert all(point.value > 0 for point in points)
    assert not any("second" in name or "memory" in name for name in losses_of(folder)[0])
    table = (folder / "profile" / "table.txt").read_text()
    for part in PARTS:
        assert table.count(f"\n{part} ") == 1, part
    assert json.loads((folder / "profile" / "trace.json").read_text())["traceEvents"]
    assert "profile: " in capsys.readouterr().out


def test_compiling_without_a_compiler_is_one_line(at_work, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert run("train_ds", *QUICK, f"--log_base_dir={tmp_path / 'runs'}", "--compile") == 2
    complaint(capsys, "--compile needs a C++ compiler", "no-such-compiler")
    assert not (tmp_path / "runs").exists()
