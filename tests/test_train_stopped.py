"""A training run that is told to stop saves first; names of runs stay in their folder; a run in use is left alone."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys

import pytest
import torch

from model.checkpoints.checkpoint import open_trained
from tests.commands import BASE, QUICK, complaint, losses_of, run
from utils.common.processes import start_of
from utils.training import loop


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP])
def test_a_signal_saves_at_the_next_step_and_the_run_goes_on_to_the_last_bit(number, at_work, tmp_path):
    flags = [*QUICK, f"--log_base_dir={tmp_path}", "--exp_name=run"]
    train_step = loop.train_step
    steps = iter(range(1, 100))

    def step_and_signal(*arguments):
        train_step(*arguments)
        if next(steps) == 3:
            os.kill(os.getpid(), number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "train_step", step_and_signal)
        with pytest.raises(SystemExit) as caught:
            run("train_ds", *flags)
    assert caught.value.code == 128 + number
    folder = tmp_path / "run"
    assert (folder / "ckpt_model" / "latest").read_text() == "global_step3"
    assert not (folder / "run.lock").exists()
    if number != signal.SIGTERM:
        return
    assert run("train_ds", *flags) == 0
    assert run("train_ds", *flags[:-1], "--exp_name=whole") == 0
    assert losses_of(folder) == losses_of(tmp_path / "whole")
    ours, theirs = (open_trained(tmp_path / name / "ckpt_model").weights for name in ("run", "whole"))
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())


def test_a_loading_process_that_is_killed_ends_the_run_with_its_number(at_work, tmp_path, capsys):
    """As the kernel does when memory runs out; the run goes on from its last save."""
    flags = [*QUICK, f"--log_base_dir={tmp_path}", "--exp_name=run", "--workers=1", "--save_every_steps=1"]
    train_step = loop.train_step
    killed: list[int] = []

    def step_without_loader(*arguments):
        train_step(*arguments)
        if not killed:
            killed.extend(child.pid for child in multiprocessing.active_children())
            for pid in killed:
                os.kill(pid, signal.SIGKILL)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "train_step", step_without_loader)
        assert run("train_ds", *flags, "--epochs=9") == 4
    line = capsys.readouterr().err.splitlines()[-1]
    for part in (
        f"loads data (pid {killed[0]}) of rank 0",
        "in step ",
        "--workers",
        "same command continues",
    ):
        assert part in line
    assert run("train_ds", *flags) == 0
    assert [line["step"] for line in losses_of(tmp_path / "run")] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    "name", ["../../x", "/tmp/x", "a/b", "a\\b", "x" * 101, "", " ", "..", "a\nb", "\u6f22" * 90]
)
def test_the_name_of_a_run_is_one_part_of_a_path(name, at_work, tmp_path, capsys):
    assert run("train_ds", *BASE, f"--log_base_dir={tmp_path / 'runs'}", f"--exp_name={name}") == 2
    complaint(capsys, "--exp_name", "must be the name of a folder in --log_base_dir")
    assert not (tmp_path / "runs").exists()


def test_two_runs_of_one_name_do_not_mix(at_work, tmp_path, capsys):
    folder = tmp_path / "run"
    folder.mkdir()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        holder = {
            "host": socket.gethostname(),
            "pid": other.pid,
            "start": start_of(other.pid),
            "since": "now",
        }
        (folder / "run.lock").write_text(json.dumps(holder))
        assert run("train_ds", *QUICK, f"--log_base_dir={tmp_path}", "--exp_name=run") == 2
        other.stdin.close()
    complaint(capsys, f"in use by process {other.pid}", "--exp_name")
    assert [path.name for path in folder.iterdir()] == ["run.lock"]
