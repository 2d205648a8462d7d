"""Runs an attack in a process of its own, with a limit of time and of memory, and judges what it did."""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from benchmarks.attack.desk import CANARY, SECRET, SECRET_COLOUR, Attack, Desk

VERDICTS = ("refused", "harmless", "executed", "leaked", "crashed", "hung")
BAD = ("executed", "leaked", "crashed", "hung")
TIME_LIMIT = 120.0  # seconds
MEMORY = 4 * 2**30  # bytes beyond what the parent has
LONGEST_LINE = 3000  # characters of a message
OUTPUT = "output.txt"
# Everything that moves a cursor, colours or renames a terminal, or turns the direction of writing.
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
# What a browser would run or fetch if a page held it as markup.
MARKUP = re.compile(r"<script>alert|<img src=x|<iframe|<svg/onload|<a href=.javascript", re.IGNORECASE)
REMOTE = re.compile(r"(?<!\\)!?\[[^\]\n]*(?<!\\)\]\(https?://evil")


@dataclass(frozen=True)
class Outcome:
    """What an attack did."""

    attack: Attack
    verdict: str  # one of VERDICTS
    seconds: float
    detail: str  # the last line of the command, or what was wrong


def run(attack: Attack, desk: Desk, time_limit: float = TIME_LIMIT) -> Outcome:
    """Prepares and runs an attack in a forked process; its stdin says "y" to every question."""
    desk.lay_out()
    started = time.monotonic()
    status = in_child(lambda: attack.run(desk), desk.here, desk.folder / OUTPUT, time_limit)
    verdict, detail = judge(desk, status, long_answer=attack.long_answer)
    return Outcome(attack, verdict, time.monotonic() - started, detail)


def in_child(
    job: Callable[[], int | None], folder: Path, output: Path, time_limit: float = TIME_LIMIT
) -> int | None:
    """The exit status of `job` in a forked process, as `os.waitpid` gives it; None when it had to be killed."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        _be_child(job, folder, output)
    end = time.monotonic() + time_limit
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def _be_child(job: Callable[[], int | None], folder: Path, output: Path) -> None:
    code = 1
    try:
        os.setpgid(0, 0)
        os.chdir(folder)
        answers, questions = os.pipe()
        os.write(questions, b"y\n" * 100)
        os.close(questions)
        written = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for ours, standard in ((answers, 0), (written, 1), (written, 2)):
            os.dup2(ours, standard)
        sys.stdin = os.fdopen(0, closefd=False)
        written_as = {"mode": "w", "errors": "surrogateescape", "buffering": 1, "closefd": False}
        sys.stdout, sys.stderr = os.fdopen(1, **written_as), os.fdopen(2, **written_as)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        code = job() or 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
        code = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def judge(desk: Desk, status: int | None, *, long_answer: bool = False) -> tuple[str, str]:
    """The verdict about what a command left, and the reason."""
    text = (desk.folder / OUTPUT).read_bytes().decode("utf-8", errors="replace")
    last = next((line for line in reversed(text.splitlines()) if line.strip()), "")
    if desk.canary.exists():
        return "executed", last
    if status is None:
        return "hung", last
    if leak := leaked(desk, text):
        return "leaked", leak
    if os.WIFSIGNALED(status):
        return "crashed", f"signal {os.WTERMSIG(status)}; {last}"
    if "Traceback (most recent call last)" in text:
        return "crashed", last
    if "unknown flag" in text:
        raise AssertionError(f"the attack did not arrive: {last}")
    if not long_answer and any(len(line) > LONGEST_LINE for line in text.splitlines()):
        return "crashed", f"a message of {max(map(len, text.splitlines()))} characters"
    return ("refused" if os.waitstatus_to_exitcode(status) else "harmless"), last


def leaked(desk: Desk, text: str) -> str:
    """What got out of where it belongs; "" for nothing."""
    if found := CONTROL.search(text):
        return f"the control character {found[0]!a} reached the terminal"
    if SECRET in text:
        return "a file outside was printed"
    strays = {path.name for path in desk.folder.iterdir()} - {"here", "outside", OUTPUT, CANARY}
    strays |= {path.name for path in desk.outside.iterdir()} - {"secret.txt", "secret.png"}
    if strays:
        return f"written outside: {', '.join(sorted(strays))}"
    for name in ("report", "preview", "merged", "vis_output", "runs"):
        for path in sorted((desk.here / name).rglob("*")):
            if path.is_file() and (leak := leaked_into(path)):
                return f"{path.relative_to(desk.here)}: {leak}"
    return ""


def leaked_into(path: Path) -> str:
    """What a file that a command wrote must not hold; "" for nothing."""
    if path.suffix == ".png":
        with Image.open(path) as image:
            colours = image.convert("RGB").getcolors(2**24) or []
        return "shows an image from outside" if SECRET_COLOUR in {colour for _, colour in colours} else ""
    if path.stat().st_size > 2**24:
        return ""
    text = path.read_bytes().decode("utf-8", errors="replace")
    if SECRET in text:
        return "holds a file from outside"
    found = MARKUP.search(text) or (REMOTE.search(text) if path.suffix == ".md" else None)
    if found and path.suffix in (".html", ".md"):
        return f"holds {found[0]!r} as markup"
    if path.suffix in (".html", ".md") and (found := CONTROL.search(text)):
        return f"holds the control character {found[0]!a}"
    return ""


def clear(desk: Desk) -> None:
    """Removes what an attack left."""
    shutil.rmtree(desk.folder, ignore_errors=True)
