"""SIGTERM and SIGHUP to any command: one line, 128 + the number, nothing half written."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from tests.commands import REPOSITORY
from utils.common.stopping import ENDING, StoppedError, stopped_in_order

COMMAND = """
import os, signal, sys, time
from pathlib import Path
from utils.common.commands import command
from utils.common.files import written_aside
from utils.common.folder_lock import folder_lock

@command("a.py")
def main(argv=None):
    with folder_lock(Path("out"), "writing.lock", "--out"), written_aside(Path("out/a.txt")) as partial:
        partial.write_text("half")
        {deed}
    return 0

sys.exit(main([]))
"""


def ended(tmp_path, deed: str, *, before: str = "") -> subprocess.CompletedProcess[str]:
    code = before + COMMAND.format(deed=deed)
    path = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("number", ENDING)
def test_a_signal_is_one_line_and_leaves_nothing(number, tmp_path):
    done = ended(tmp_path, f"os.kill(os.getpid(), {int(number)}); time.sleep(50)")
    assert done.returncode == 128 + number
    assert done.stderr == f"a.py: stopped by {number.name}\n"
    assert list(tmp_path.iterdir()) == []


def test_the_second_one_ends_at_once(tmp_path):
    deed = "try: os.kill(os.getpid(), 15)\n        finally: os.kill(os.getpid(), 15); time.sleep(50)"
    assert ended(tmp_path, deed).returncode == -signal.SIGTERM


def test_nohup_is_respected(tmp_path):
    before = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
    assert ended(tmp_path, "os.kill(os.getpid(), signal.SIGHUP)", before=before).returncode == 0
    assert (tmp_path / "out/a.txt").read_text() == "half"


def test_a_process_that_inherits_the_handlers_ends_by_the_signal(tmp_path):
    deed = "child = os.fork() or (time.sleep(50), os._exit(1))\n        "
    deed += "time.sleep(0.2); os.kill(child, 15); sys.exit(os.waitpid(child, 0)[1])"
    assert ended(tmp_path, deed).returncode == signal.SIGTERM


def test_handlers_are_as_before_afterwards(monkeypatch):
    before = {number: signal.getsignal(number) for number in ENDING}
    for number in ENDING:
        signal.signal(number, signal.SIG_DFL)
    with pytest.raises(StoppedError) as caught, stopped_in_order(), stopped_in_order():
        os.kill(os.getpid(), signal.SIGHUP)
    assert caught.value.code == 128 + signal.SIGHUP
    assert all(signal.getsignal(number) == signal.SIG_DFL for number in ENDING)
    monkeypatch.setenv("WORLD_SIZE", "2")  # may wait for another one, where no handler is run
    with stopped_in_order():
        assert all(signal.getsignal(number) == signal.SIG_DFL for number in ENDING)
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_command_within_another_leaves_the_end_to_that_one(tmp_path):
    deed = """@command("inner.py")
        def inner(argv=None):
            os.kill(os.getpid(), 15)
        inner([])
        print("goes on")"""
    done = ended(tmp_path, deed)
    assert (done.returncode, done.stdout, done.stderr) == (143, "", "a.py: stopped by SIGTERM\n")
