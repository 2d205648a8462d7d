"""train_ds.py with every ZeRO stage, and on two processes, on the toy world."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from model.checkpoints.checkpoint import open_trained
from model.encoder_precision import cpu_has_bf16
from tests.commands import QUICK, REPOSITORY, losses_of, run
from tests.stopped_runs import check_same_weights, stop_before
from tests.two_processes import run_in_two
from utils.common.processes import without_launcher


@pytest.fixture(scope="module")
def stage_0(workspace, tmp_path_factory):
    """The reference for the stages: losses and weights without ZeRO."""
    return train_with_stage(workspace, tmp_path_factory.mktemp("runs"), 0)


def train_with_stage(workspace: Path, runs: Path, stage: int) -> tuple[list[dict], dict[str, torch.Tensor]]:
    """Three steps, the last one after a restart."""
    flags = [*QUICK, f"--log_base_dir={runs}", f"--exp_name=stage{stage}", f"--zero_stage={stage}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workspace)
        with pytest.MonkeyPatch.context() as stopped:
            stop_before(stopped, step=3)
            with pytest.raises(KeyboardInterrupt):
                run("train_ds", *flags)
        assert run("train_ds", *flags) == 0
    folder = runs / f"stage{stage}"
    return losses_of(folder), open_trained(folder / "ckpt_model").weights


@pytest.mark.filterwarnings("ignore:.*all_gather_into_tensor.*")
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_every_zero_stage_trains_saves_and_resumes_like_the_others(stage, stage_0, workspace, tmp_path):
    losses, weights = train_with_stage(workspace, tmp_path, stage)
    for ours, theirs in zip(losses, stage_0[0], strict=True):
        assert ours == pytest.approx(theirs, abs=1e-4)
    check_same_weights(weights, stage_0[1])


def test_zero_3_validates_on_two_processes_as_one_does(at_work, tmp_path):
    """One of them has two images and the other one, which would be a deadlock on the divided model."""
    flags = [flag for flag in QUICK if flag != "--no_eval"]
    flags += [f"--log_base_dir={tmp_path}", "--zero_stage=3", "--epochs=1", "--lora_dropout=0"]
    flags += ["--val_dataset_list=ade20k", "--max_val_samples=3"]
    run_in_two([["train_ds", *flags, "--exp_name=two"]], at_work)
    assert run("train_ds", *flags, "--exp_name=one", "--grad_accumulation_steps=2") == 0
    two, one = (validated(tmp_path / name) for name in ("two", "one"))
    assert two.keys() == one.keys()
    assert two == pytest.approx(one, abs=0.02, nan_ok=True)


@pytest.mark.skipif(not cpu_has_bf16(), reason="this CPU has no bfloat16 instructions")
def test_zero_3_divides_weights_of_two_precisions(at_work, tmp_path):
    flags = [*QUICK, f"--log_base_dir={tmp_path}", "--epochs=1", "--lora_dropout=0"]
    flags += ["--precision=fp32", "--encoder_precision=bf16"]
    run_in_two(
        [["train_ds", *flags, f"--zero_stage={stage}", f"--exp_name={stage}"] for stage in (0, 3)], at_work
    )
    for divided, whole in zip(losses_of(tmp_path / "3"), losses_of(tmp_path / "0"), strict=True):
        assert divided == pytest.approx(whole, abs=1e-5)


def validated(run_folder: Path) -> dict[str, float]:
    """The numbers of the last validation, as TensorBoard has them."""
    events = EventAccumulator(str(run_folder)).Reload()
    tags = [tag for tag in events.Tags()["scalars"] if tag.startswith("val")]
    assert tags
    return {tag: events.Scalars(tag)[-1].value for tag in tags}


@pytest.mark.launcher
def test_two_processes_train_like_one_that_accumulates_two_micro_batches(at_work, tmp_path):
    flags = [*QUICK, f"--log_base_dir={tmp_path}", "--epochs=1", "--steps_per_epoch=5", "--lora_dropout=0"]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    launcher = [Path(sys.executable).parent / "deepspeed", "--num_accelerators=2", f"--master_port={port}"]
    two = subprocess.run(
        [*launcher, REPOSITORY / "train_ds.py", *flags, "--exp_name=two"],
        env=without_launcher(os.environ) | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert two.returncode == 0, two.stderr[-2000:]
    assert run("train_ds", *flags, "--exp_name=one", "--grad_accumulation_steps=2") == 0
    for ours, theirs in zip(losses_of(tmp_path / "two"), losses_of(tmp_path / "one"), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-4)
    ours, theirs = (open_trained(tmp_path / name / "ckpt_model").weights for name in ("two", "one"))
    check_same_weights(ours, theirs)
