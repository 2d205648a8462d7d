"""Kills at writes and at random, short; every difference to the run that nobody killed is seen."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import ROOT
from benchmarks.crash.compare import differences, last_step, newest_named, resumed_at
from benchmarks.crash.runs import kind_of, of_many_kinds
from benchmarks.crash.writes import Writes


def test_runs_that_are_killed_come_to_what_they_would_have_come_to(tmp_path):
    """Kills at two writes; `python -m benchmarks.crash` does fifty, a third of them at a random time."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.crash",
        "--kills=2",
        "--only=1xfp32",
        f"--out={tmp_path}/crash.json",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    cases = json.loads((tmp_path / "crash.json").read_text())
    assert len(cases) == 2
    assert not any(case["problems"] for case in cases)
    assert any(case["killed"] for case in cases)


def write_all(folder: Path) -> None:
    """Some writes of every kind."""
    (folder / "a").mkdir()
    with (folder / "a" / "text").open("w") as file:
        file.write("0123456789")
    torch.save({"a": torch.arange(1000)}, folder / "a" / "weights.pt")
    os.replace(folder / "a" / "text", folder / "a" / "renamed")
    (folder / "a" / "renamed").unlink()
    (folder / "a" / "left").write_bytes(b"0123456789")
    shutil.copyfile(folder / "a" / "left", folder / "a" / "copy")
    (folder / "a" / "copy").unlink()
    (folder / "a" / "last").write_bytes(b"x")
    shutil.rmtree(folder / "a")


def run_and_die(folder: Path, die_at: int | None) -> tuple[int, list[str]]:
    """The exit code of a forked process that writes, and what it counted."""
    folder.mkdir()
    counted = folder.parent / "counted.json"
    child = os.fork()
    if child == 0:
        writes = Writes(folder, die_at)
        writes.install()
        write_all(folder)
        counted.write_text(json.dumps(writes.moments))
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return code, json.loads(counted.read_text())


def test_a_process_dies_before_in_and_after_every_write(tmp_path):
    code, moments = run_and_die(tmp_path / "whole", None)
    assert code == 0
    kinds = {(moment.split()[0], moment.split()[-1 if "(" in moment else 1]) for moment in moments}
    for what in ("mkdir", "torch.save", "replace", "unlink", "rmtree"):
        assert {("before", what), ("after", what)} <= kinds
    assert {("half", "of"), ("before", "(w)"), ("after", "(wb)"), ("half", "(w)")} <= kinds
    left: dict[str, Path] = {}
    for index, moment in enumerate(moments):
        left[moment] = tmp_path / f"died{index}" / "a"
        assert run_and_die(tmp_path / f"died{index}", index)[0] == -9, moment
    assert not left["before mkdir a"].exists()
    assert left["after mkdir a"].is_dir()
    assert (left["after open a/text (w)"] / "text").read_text() == ""
    assert (left["half of open a/text (w)"] / "text").read_text() == "01234"
    assert (left["before replace a/text"] / "text").read_text() == "0123456789"
    assert (left["after replace a/text"] / "renamed").read_text() == "0123456789"
    whole = (left["after torch.save a/weights.pt"] / "weights.pt").stat().st_size
    assert (left["half of torch.save a/weights.pt"] / "weights.pt").stat().st_size == whole // 2
    assert (left["half of open a/copy (wb)"] / "copy").read_text() == "01234"
    assert len(list(left["half of rmtree a"].iterdir())) == 1
    assert not left["after rmtree a"].exists()


@pytest.fixture
def folders(tmp_path) -> tuple[Path, Path]:
    """Two equal folders of runs."""
    folder = tmp_path / "whole"
    for name in ("ckpt_model", "ckpt_best"):
        (folder / name / "global_step2").mkdir(parents=True)
        (folder / name / "latest").write_text("global_step2")
        state = {"weights": torch.arange(3.0), "optimizer": [{"step": 2}], "name": "x"}
        torch.save(state, folder / name / "global_step2" / "mp_rank_00_model_states.pt")
    (folder / "losses.jsonl").write_text('{"step": 1}\n{"step": 2}\n')
    (folder / "data.json").write_text("{}")
    (folder / "validation.json").write_text("{}")
    shutil.copytree(folder, tmp_path / "run")
    return tmp_path / "run", folder


def change_state(folder: Path, **changes: object) -> None:
    path = folder / "ckpt_best" / "global_step2" / "mp_rank_00_model_states.pt"
    torch.save({**torch.load(path), **changes}, path)


CHANGES = {
    "a loss": lambda folder: (folder / "losses.jsonl").write_text('{"step": 1}\n{"step": 2.5}\n'),
    "a count": lambda folder: (folder / "data.json").write_text('{"samples": 1}'),
    "the best": lambda folder: (folder / "ckpt_best" / "latest").write_text("global_step1"),
    "a weight": lambda folder: change_state(folder, weights=torch.tensor([0.0, 1.0, 2.0000002])),
    "a number format": lambda folder: change_state(folder, weights=torch.arange(3)),
    "the optimizer": lambda folder: change_state(folder, optimizer=[{"step": 3}]),
    "a missing value": lambda folder: change_state(folder, more=1),
    "a save too few": lambda folder: shutil.rmtree(folder / "ckpt_best" / "global_step2"),
    "a file too many": lambda folder: (folder / "ckpt_model" / "partial_global_step3").mkdir(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_difference_is_seen(change, folders):
    assert differences(*folders) == []
    CHANGES[change](folders[0])
    assert differences(*folders)


def test_where_a_run_stood_and_where_it_goes_on(folders):
    (folders[0] / "losses.jsonl").open("a").write('{"step": 3, "tot')
    assert last_step(folders[0]) == 2
    assert newest_named(folders[0]) == 2
    assert resumed_at("one line\ncontinues runs/run/ckpt_model/global_step2 at step 2\n") == 2
    assert resumed_at("") == 0


def test_every_kind_of_moment_has_its_turn_before_one_has_its_second():
    moments = (
        ["after open global_step1/a"] * 50 + ["after open global_step2/a", "before unlink b"] + ["c"] * 3
    )
    for seed in range(20):
        places = of_many_kinds(moments, 6, random.Random(seed))
        kinds = [kind_of(moments[place]) for place in places]
        assert len(set(kinds[:3])) == len(set(kinds)) == 3
        assert len(set(places)) == 6
    assert len(of_many_kinds(moments, 100, random.Random(0))) == 100
