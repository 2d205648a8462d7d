"""One training at a time in a run's folder, one evaluation in that of a report.

runs/EXP/run.lock holds the host, the number and the start of the process that trains, REPORT_DIR/evaluation.lock
those of the one that evaluates. A lock whose process is gone is taken over on the same host; of another host nothing
is known, so its lock is named. A lock that came with a copy of the folder is none: its process works in the original.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from model.errors import UserError
from model.files import is_regular
from model.write_errors import writing
from utils.common.processes import before_sudden_end, start_of

logger = logging.getLogger(__name__)

RUN_LOCK, EVALUATION_LOCK, WRITING_LOCK = "run.lock", "evaluation.lock", "writing.lock"
MAX_LOCK = 10_000  # characters that are read of it


@contextmanager
def folder_lock(folder: Path, name: str, flag: str) -> Iterator[None]:
    """Hold the lock of a folder; the folder is made, and removed again if nothing was put into it.

    Args:
        name: of the lock file.
        flag: what the user may choose otherwise, --exp_name for instance.

    Raises:
        UserError: another process works in it, or may do so.
    """
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    try:
        with writing(path):
            _take(path, flag)
        try:
            with before_sudden_end(path.unlink):
                yield
        finally:
            with suppress(OSError):
                path.unlink()
    finally:
        for place in missing:
            with suppress(OSError):
                place.rmdir()


def _take(path: Path, flag: str) -> None:
    with _locked(path) as file:
        holder = _holder(file.read(MAX_LOCK))
        if holder is not None and (problem := _in_the_way(holder, path, flag)):
            raise UserError(problem)
        mine = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "start": start_of(os.getpid()),
            "since": time.strftime("%Y-%m-%d %H:%M:%S"),
            "folder": os.path.realpath(path.parent),
        }
        try:
            file.seek(0)
            file.truncate()
            file.write(json.dumps(mine) + "\n")
            file.flush()
            os.fsync(file.fileno())
        except OSError:
            with suppress(OSError):
                path.unlink()
            raise


@contextmanager
def _locked(path: Path) -> Iterator[IO[str]]:
    """The lock file, open, while nobody else reads or writes it."""
    while True:
        is_regular(path)
        with path.open("a+", encoding="utf-8", errors="replace") as file:
            with suppress(OSError):  # a network file system without locks
                fcntl.flock(file, fcntl.LOCK_EX)
            # A holder that ended may have deleted the file that was just opened.
            if path.exists() and path.stat().st_ino == os.fstat(file.fileno()).st_ino:
                file.seek(0)
                yield file
                return


def _holder(text: str) -> dict[str, object] | None:
    """The process that wrote a lock file; None if its content is incomplete."""
    try:
        told = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return told if isinstance(told, dict) and isinstance(told.get("pid"), int) else None


def _in_the_way(holder: dict[str, object], path: Path, flag: str) -> str | None:
    """Why the lock cannot be taken; None if its process is gone."""
    who = f"process {holder['pid']} on host {holder.get('host')}, since {holder.get('since')}"
    if _is_copied(holder, path):
        logger.info("%s is a copy: %s works in %s", path, who, holder["folder"])
        return None
    if holder.get("host") != socket.gethostname():
        return (
            f"{path.parent} is in use by {who} ({path.name}), which cannot be asked from {socket.gethostname()}; if "
            f"it has ended, delete {path}, else choose another {flag}"
        )
    now = start_of(int(str(holder["pid"])))
    if holder["pid"] == os.getpid() or now is None or now != holder.get("start"):
        logger.info("%s was left by %s, which has ended", path, who)
        return None
    return f"{path.parent} is in use by {who} ({path.name}); wait for it, stop it, or choose another {flag}"


def _is_copied(holder: dict[str, object], path: Path) -> bool:
    """Whether a lock was copied with its folder, so that its process works in the folder that it names."""
    original = Path(str(holder.get("folder") or "nowhere")) / path.name
    try:
        if not is_regular(original) or original.stat().st_ino == path.stat().st_ino:
            return False
        with original.open(encoding="utf-8", errors="replace") as file:
            return _holder(file.read(MAX_LOCK)) == holder
    except (OSError, ValueError):
        return False
