"""configs/train.sbatch, with commands of SLURM that only say what they were asked."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.commands import REPOSITORY

SRUN = """#!/bin/bash
# Runs the command as the fourth of 16 tasks, the second on the second node.
while [[ "$1" == --* ]]; do shift; done
SLURM_PROCID=9 SLURM_LOCALID=1 SLURM_NTASKS=16 exec "$@"
"""
SCONTROL = """#!/bin/bash
case "$1 $2" in
  "show hostnames") printf 'node7\\nnode8\\n';;
  *) echo "$@" >> "$CALLS";;
esac
"""
PYTHON = """#!/bin/bash
echo "$RANK $LOCAL_RANK $WORLD_SIZE $MASTER_ADDR $MASTER_PORT" >> "$CALLS"
printf '%s\\n' "$@" >> "$CALLS"
exit "$ENDS_WITH"
"""


@pytest.fixture
def slurm(tmp_path):
    """Runs the script in an allocation; returns its exit code, and what the commands were asked."""
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("python", PYTHON)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)

    def run(*arguments: str, ends_with: int) -> tuple[int, list[str]]:
        calls = Path(tmp_path / "calls")
        environment = {
            "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
            "CALLS": str(calls),
            "ENDS_WITH": str(ends_with),
            "SLURM_JOB_ID": "123456",
            "SLURM_JOB_NODELIST": "node[7-8]",
        }
        script = REPOSITORY / "configs" / "train.sbatch"
        code = subprocess.run([script, *arguments], env=environment, check=False).returncode
        return code, calls.read_text().splitlines()

    return run


def test_each_task_is_a_process_that_knows_its_place_and_gets_the_arguments_as_they_are(slurm):
    code, calls = slurm("--config", "configs/toy.yaml", "--exp_name", "two words", ends_with=0)
    assert code == 0
    assert calls == [
        "9 1 16 node7 23456",
        "train_ds.py",
        "--config",
        "configs/toy.yaml",
        "--exp_name",
        "two words",
    ]


def test_a_run_that_saved_itself_before_the_time_limit_is_requeued(slurm):
    code, calls = slurm(ends_with=138)
    assert code == 138
    assert calls[-1] == "requeue 123456"


@pytest.mark.parametrize("code", [1, 2, 3, 143])
def test_a_run_that_failed_is_not_requeued(code, slurm):
    assert slurm(ends_with=code) == (code, ["9 1 16 node7 23456", "train_ds.py"])
