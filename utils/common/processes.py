"""Identifies processes by pid and start time, because pids are reused; what a launcher tells them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

BOOT_FILE = Path("/proc/sys/kernel/random/boot_id")
# What torchrun and DeepSpeed's launcher tell each process that they start.
LAUNCH_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_last_deeds: list[Callable[[], object]] = []


def without_launcher(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment in which a script starts a run of its own, whatever this process is a part of."""
    return {name: value for name, value in environment.items() if name not in LAUNCH_VARIABLES}


def start_of(pid: int) -> str | None:
    """When a process of this machine started, as a text that no other process has; None if there is none.

    Where the system has no /proc, "" for every process that is alive.
    """
    try:
        # The name, in parentheses, may hold anything; the state is the first field after it, the start the 20th.
        fields = (
            Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        )
        return None if fields[0] in "ZX" else f"{BOOT_FILE.read_text().strip()}/{fields[19]}"
    except (OSError, IndexError):
        if BOOT_FILE.exists():
            return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return ""


def parent_of(pid: int) -> int:
    """The pid of a process's parent; 0 if it is unknown."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        return int(text.rpartition(")")[2].split()[1])
    except (OSError, IndexError, ValueError):
        return os.getppid() if pid == os.getpid() else 0


def command_of(pid: int) -> str:
    """The command line of a process; empty if it is unknown."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").replace("\0", " ")
    except OSError:
        return ""


def end_now(code: int) -> NoReturn:
    """End this process from any thread, whatever the main one waits for; what `before_sudden_end` named is done."""
    for deed in reversed(_last_deeds):
        with suppress(Exception):
            deed()
    os._exit(code)


@contextmanager
def before_sudden_end(deed: Callable[[], object]) -> Iterator[None]:
    """What `end_now` has to do first while the block runs, which does not come to its own end then."""
    _last_deeds.append(deed)
    try:
        yield
    finally:
        _last_deeds.remove(deed)
