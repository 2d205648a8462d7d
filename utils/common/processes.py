"""Identifies processes by pid and start time, because pids are reused."""

from __future__ import annotations

import os
from pathlib import Path

BOOT_FILE = Path("/proc/sys/kernel/random/boot_id")


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
