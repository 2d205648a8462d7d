"""The attacks, short: one of each kind through the commands; the runner sees what an attack does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from benchmarks import ROOT
from benchmarks.attack.__main__ import ATTACKS
from benchmarks.attack.desk import SECRET, SECRET_COLOUR, Attack, Desk
from benchmarks.attack.runner import run
from utils.common.processes import without_launcher


def test_no_attack_is_executed_leaked_or_crashes():
    command = [sys.executable, "-m", "benchmarks.attack", "--quick", "--verbose", "--time_limit=120"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=without_launcher(os.environ))
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    kinds = {attack.kind for attack in ATTACKS}
    assert all(f"| {kind} |" in done.stdout for kind in kinds)


def test_the_page_about_security_has_a_row_for_each_kind():
    page = (ROOT / "docs" / "security.md").read_text()
    assert {attack.kind for attack in ATTACKS} <= {
        row.split("|")[1].strip() for row in page.splitlines() if "|" in row
    }


def write(path, content):
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    return 0


def show_secret(desk):
    from PIL import Image

    (desk.here / "report").mkdir()
    Image.new("RGB", (4, 4), SECRET_COLOUR).save(desk.here / "report/a.png")


DEEDS = {
    "executed": lambda desk: os.system(desk.shell),
    "hung": lambda desk: time.sleep(60),
    "crashed by an exception": lambda desk: 1 // 0,
    "crashed by a signal": lambda desk: os.kill(os.getpid(), signal.SIGKILL),
    "crashed by memory": lambda desk: bytearray(2**40),
    "leaked to the terminal": lambda desk: print("\x1b[2J"),
    "leaked in a page": lambda desk: write(desk.here / "report/report.md", "<script>alert(1)</script>"),
    "leaked by a link": lambda desk: write(desk.here / "report/report.md", "![x](http://evil/x.png)"),
    "leaked a text": lambda desk: print(SECRET),
    "leaked an image": show_secret,
    "leaked outside": lambda desk: write(desk.outside / "x", ""),
    "refused": lambda desk: 2,
    "harmless": lambda desk: 0,
    "harmless, as it asks and is told y": lambda desk: 0 if input() == "y" else 2,
}


@pytest.mark.parametrize("name", DEEDS)
def test_the_runner_sees_what_an_attack_does(tmp_path, name):
    outcome = run(Attack("kind", name, DEEDS[name]), Desk(tmp_path / "desk", tmp_path), time_limit=3)
    assert outcome.verdict == name.split()[0].rstrip(","), outcome.detail
