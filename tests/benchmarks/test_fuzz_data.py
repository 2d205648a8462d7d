"""The fuzzing of data sets: it finds what is wrong, and in a short run nothing is."""

from __future__ import annotations

import argparse
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks.fuzz_data import __main__ as fuzz
from benchmarks.fuzz_data.damage import DAMAGES, damages_for
from benchmarks.fuzz_data.world import make_worlds, restore
from utils.data.datasets.own_sem import OwnSemantic

OPTIONS = argparse.Namespace(seed=0, case=None, only="", steps_every=0, time_limit=60.0)


@pytest.fixture(scope="module")
def watch():
    return fuzz.Watch()


@pytest.fixture(scope="module")
def bench():
    return fuzz.make_bench(with_model=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="module")
def sound(folder, bench, watch):
    """ADE20K and own data of the three kinds, undamaged."""
    targets = make_worlds(folder / "data", ("ade20k", "own"))
    assert [target.name for target in targets] == ["ade20k", "own_sem", "own_coco", "own_jsonl"]
    return [fuzz.look(target, bench, watch) for target in targets]


def test_damages_have_no_consequence(sound, folder, bench, watch):
    """A dozen kinds, one case of each; the rest is for `python -m benchmarks.fuzz_data`."""
    done = []
    for number in range(400):
        one, path, damage, rng = fuzz.choose(sound, number, OPTIONS)
        if damage.name in {case.damage for case in done} or len(done) == 12:
            continue
        before = path.read_bytes()
        case = fuzz.run_case(folder, number, one, path, damage, rng, bench, watch, OPTIONS, real_steps=False)
        assert path.read_bytes() == before
        assert not path.is_symlink()
        assert case.outcome not in fuzz.PROBLEMS, case
        done.append(case)
    assert len(done) == 12
    assert {case.outcome for case in done} <= {"used", "left out", "refused"}
    assert "| all |" in fuzz.table(done)


def crash(*_):
    os.kill(os.getpid(), signal.SIGKILL)  # a segmentation fault without its dump


def wait(*_):
    time.sleep(60)


def fail(*_):
    raise KeyError("of a defect")


def write(*_):
    Path("/tmp/fuzz_written_elsewhere").write_text("")
    Path("/tmp/fuzz_written_elsewhere").unlink()


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.name)
def test_every_damage_changes_a_file_and_says_how(damage, sound):
    for number, path in enumerate(path for one in sound for path in one.files if damage in damages_for(path)):
        before = path.read_bytes()
        try:
            did = damage.apply(path, np.random.default_rng(number))
            if did is None:
                continue
            assert path.is_symlink() or not path.is_file() or path.read_bytes() != before or not before
            return
        finally:
            restore(path, before)
    pytest.fail("it can be done to no file")


FAULTS = {"died": crash, "hang": wait, "traceback": fail, "written elsewhere": write}


@pytest.mark.parametrize("outcome", [*FAULTS, "read elsewhere", "wrong label"])
def test_a_defect_is_found(outcome, sound, folder, bench, watch, monkeypatch):
    one = next(one for one in sound if one.target.name == "own_sem")
    read = OwnSemantic.__getitem__

    def with_a_defect(self, index):
        sample = read(self, index)
        if outcome in FAULTS:
            FAULTS[outcome]()
        elif outcome == "read elsewhere":
            (folder / "data" / "outside" / "secret.jpg").read_bytes()
        else:
            sample.label[0, 0] = (int(sample.label[0, 0]) + 1) % 3
        return sample

    monkeypatch.setattr(OwnSemantic, "__getitem__", with_a_defect)
    path = next(path for path in one.files if path.suffix == ".jpg" and "train" in str(path))
    damage = next(damage for damage in damages_for(path) if damage.name == "empty")
    options = argparse.Namespace(**{**vars(OPTIONS), "time_limit": 3.0 if outcome == "hang" else 60.0})
    rng = np.random.default_rng(0)
    case = fuzz.run_case(folder, 0, one, path, damage, rng, bench, watch, options, real_steps=False)
    assert case.outcome == outcome, case
