"""What a long run takes is seen from outside; short."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time

import pytest

from benchmarks import long_run
from benchmarks.long_run import BARS, Look, children_of, look_at, shared, slope
from utils.common.processes import LAUNCH_VARIABLES


def test_a_run_is_looked_at_until_its_end(tmp_path, monkeypatch):
    """Too short to say that nothing grows but handles, threads and shared memory: `--steps 2000` says the rest."""
    with socket.create_server(("127.0.0.1", 0)) as other:  # where this process would meet with others
        for name, value in zip(LAUNCH_VARIABLES, ("0", "0", "1", *other.getsockname()), strict=True):
            monkeypatch.setenv(name, str(value))
        long_run.main(["--steps=8", "--every=1", f"--out={tmp_path / 'long.json'}"])
    result = json.loads((tmp_path / "long.json").read_text())
    looks = result["looks"]
    assert looks[-1]["step"] > looks[0]["step"]
    assert all(look["memory_mb"] > 100 and look["files"] > 3 for look in looks)
    half = looks[len(looks) // 2 :]
    # Processes of the loader come and go, so that their handles differ from look to look.
    assert max(look["files"] for look in half) < 400
    assert max(look["shared_mb"] for look in half) < 64
    assert result["slopes"].keys() == BARS.keys()


def test_growth_is_that_of_the_second_half():
    looks = [Look(step, 100.0 + max(0, step - 50) * 0.5, 10 + step % 2, 5, 0, 0) for step in range(101)]
    assert slope(looks, "memory_mb") == pytest.approx(500)
    assert slope(looks, "files") == pytest.approx(0)
    assert slope(looks, "threads") == pytest.approx(0)


def test_processes_and_their_children_count():
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import sys; sys.stdin.read()'])"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) as process:
        deadline = time.monotonic() + 60
        while not children_of(process.pid) and time.monotonic() < deadline:
            time.sleep(0.05)
        one = look_at(process.pid, 1, shared())
        process.stdin.close()
    assert one.memory_mb > 5
    assert one.threads >= 2
