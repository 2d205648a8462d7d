"""losses.jsonl and TensorBoard's files while the disk is full: nothing is lost, nothing is written twice."""

from __future__ import annotations

import errno
import json
import os
import time

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from model.errors import UserError
from utils.training import records
from utils.training.records import Records


@pytest.fixture
def clock(monkeypatch):
    """The seconds that have passed, which sleeping and a test add to."""
    passed, start = [0.0], time.time()
    monkeypatch.setattr(records.time, "monotonic", lambda: passed[0])
    # TensorBoard reads its files by name, that is by the second in which each was begun.
    monkeypatch.setattr(records.time, "time", lambda: start + passed[0])
    monkeypatch.setattr(records.time, "sleep", lambda seconds: passed.__setitem__(0, passed[0] + seconds))
    return passed


def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def steps_in(folder) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / "losses.jsonl").read_text().splitlines()]


def values_in(folder) -> dict[int, float]:
    board = EventAccumulator(str(folder)).Reload()
    return {point.step: point.value for point in board.Scalars("train/total")}


def add(log: Records, step: int) -> None:
    log.add(json.dumps({"step": step}), [("train/total", step / 2, step)])


def test_lines_wait_while_the_disk_is_full_and_are_written_in_order(tmp_path, clock, caplog):
    log = Records(tmp_path, 0, 5)
    add(log, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "append_whole", full)
        for step in (2, 3):
            add(log, step)
            clock[0] += 30
            assert not log.gave_up
    assert steps_in(tmp_path) == [1]
    assert caplog.text.count("for --disk_patience 5 minutes") == 1
    add(log, 4)
    assert steps_in(tmp_path) == [1, 2, 3, 4]
    assert "written again" in caplog.text
    log.close(patiently=True)
    assert values_in(tmp_path) == {1: 0.5, 2: 1.0, 3: 1.5, 4: 2.0}


def test_values_that_tensorboard_could_not_write_are_in_another_file(tmp_path, clock):
    log = Records(tmp_path, 0, 5)
    add(log, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SummaryWriter, "add_scalar", full)
        add(log, 2)
        clock[0] += 30
        add(log, 3)
    assert steps_in(tmp_path) == [1, 2, 3]
    clock[0] += 30
    add(log, 4)
    log.close(patiently=True)
    assert values_in(tmp_path) == {1: 0.5, 2: 1.0, 3: 1.5, 4: 2.0}


def test_a_disk_that_stays_full_is_given_up_after_the_patience(tmp_path, clock, monkeypatch):
    monkeypatch.setattr(records, "append_whole", full)
    log = Records(tmp_path, 0, 5)
    add(log, 1)
    log.check()
    clock[0] += 301
    assert log.gave_up
    with pytest.raises(UserError, match=r"No space left on device.*gave up after --disk_patience 5 minutes"):
        log.check()
    with pytest.raises(UserError, match="gave up"):
        log.close(patiently=True)
    log.close(patiently=False)  # when something else has ended the run


def test_the_end_of_a_run_waits_for_the_disk(tmp_path, clock):
    log = Records(tmp_path, 0, 5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "append_whole", full)
        add(log, 1)

        def room(seconds: float) -> None:
            clock[0] += seconds
            patch.undo()

        patch.setattr(records.time, "sleep", room)
        log.close(patiently=True)
    assert steps_in(tmp_path) == [1]
    assert values_in(tmp_path) == {1: 0.5}
