"""Signals, and launchers that die; without a model."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from tests.commands import REPOSITORY
from utils.training import signals
from utils.training.signals import StopSignals, launchers_of


def run_python(code: str) -> int:
    return subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=False, timeout=60).returncode


def test_the_second_signal_ends_the_process_at_once():
    code = """
import os, signal
from utils.training.signals import StopSignals
with StopSignals() as signals, signals.deferred():
    os.kill(os.getpid(), signal.SIGUSR1)
    assert signals.received == signal.SIGUSR1
    os.kill(os.getpid(), signal.SIGTERM)
    os._exit(0)
"""
    assert run_python(code) == -signal.SIGTERM


@pytest.mark.parametrize("number", signals.WATCHED)
def test_where_nothing_is_lost_a_signal_ends_the_process(number):
    with pytest.raises(SystemExit) as caught, StopSignals():
        os.kill(os.getpid(), number)
    assert caught.value.code == 128 + number


def test_a_signal_that_came_in_a_step_ends_the_validation_before_it_starts():
    with StopSignals() as stops, stops.deferred():
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(SystemExit), stops.deferred(False):
            raise AssertionError


def test_a_launcher_that_is_gone_is_noticed(monkeypatch):
    """The launcher is a process that has ended; the wait for the signal ends with its arrival."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    monkeypatch.setattr(signals, "launchers_of", lambda _: {ended.pid: "then"})
    monkeypatch.setattr(signals, "LOOK_EVERY", 0.2)  # later than the `with` block begins
    with pytest.raises(SystemExit) as caught, StopSignals():
        signal.pause()
    assert caught.value.code == 128 + signal.SIGTERM


def test_a_signal_that_comes_while_the_watch_begins_leaves_nothing_behind(monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(
        signals, "launchers_of", lambda _: os.kill(os.getpid(), signal.SIGTERM) or signal.pause()
    )
    stops = StopSignals()
    with pytest.raises(SystemExit), stops:
        raise AssertionError
    assert stops._ended.is_set()
    assert signal.getsignal(signal.SIGTERM) == before


def test_only_launchers_are_watched(monkeypatch):
    parents = {10: 9, 9: 8, 8: 7, 7: 1}
    commands = {
        9: "python -m deepspeed.launcher.launch train_ds.py",
        8: "python bin/deepspeed train_ds.py",
        7: "bash",
    }
    monkeypatch.setattr(signals, "parent_of", parents.get)
    monkeypatch.setattr(signals, "command_of", commands.get)
    monkeypatch.setattr(signals, "start_of", str)
    assert launchers_of(10) == {9: "9", 8: "8"}
    assert launchers_of(8) == {}
