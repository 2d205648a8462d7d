"""Kills a process at its n-th write: before it, in the middle of it, or after it."""

from __future__ import annotations

import builtins
import io
import os
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

# TensorBoard writes in a thread of its own; the lock is of a start.
IGNORED = ("events.out.tfevents", "run.lock")


class Writes:
    """Numbers what this process does to the files below a folder, and may die at one of the numbers.

    Every write has two moments, before and after it. Opening a file to write, `torch.save` and the removal of a
    folder have a third one, when half of it is done.

    Args:
        folder: only what lies below it counts.
        die_at: the moment to die at; None: never.
    """

    def __init__(self, folder: Path, die_at: int | None = None) -> None:
        self.moments: list[str] = []
        self._folder, self._die_at = f"{folder.resolve()}{os.sep}", die_at

    def install(self) -> None:
        """Wraps the functions for the rest of this process's life."""
        opening = self._opening(builtins.open)
        builtins.open = io.open = opening
        for name in ("rename", "replace", "unlink", "rmdir", "mkdir", "remove"):
            setattr(os, name, self._plain(name, getattr(os, name)))
        shutil.rmtree = self._removing(shutil.rmtree)
        torch.save = self._saving(torch.save)

    def reached(self, moment: str) -> bool:
        """Counts a moment; whether it is the one to die at."""
        self.moments.append(moment)
        return len(self.moments) - 1 == self._die_at

    def pass_or_die(self, moment: str) -> None:
        if self.reached(moment):
            die()

    def counts(self, path: Any) -> bool:
        """Whether a write to this path is one of those that are counted."""
        if (
            not isinstance(path, str | os.PathLike)
            or threading.current_thread() is not threading.main_thread()
        ):
            return False
        text = os.path.abspath(os.fspath(path))
        return f"{text}{os.sep}".startswith(self._folder) and not any(name in text for name in IGNORED)

    def _plain(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def write(path: Any, *arguments: Any, **named: Any) -> Any:
            if not self.counts(path):
                return function(path, *arguments, **named)
            what = f"{name} {self._shown(path)}"
            self.pass_or_die(f"before {what}")
            result = function(path, *arguments, **named)
            self.pass_or_die(f"after {what}")
            return result

        return write

    def _opening(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def open_file(path: Any, mode: str = "r", *arguments: Any, **named: Any) -> Any:
            if not set(mode) & set("wax+") or not self.counts(path):
                return function(path, mode, *arguments, **named)
            what = f"open {self._shown(path)} ({mode})"
            self.pass_or_die(f"before {what}")
            file = function(path, mode, *arguments, **named)
            self.pass_or_die(f"after {what}")
            return _DyingFile(file) if self.reached(f"half of {what}") else file

        return open_file

    def _saving(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def save(content: Any, path: Any, *arguments: Any, **named: Any) -> Any:
            if not self.counts(path):
                return function(content, path, *arguments, **named)
            what = f"torch.save {self._shown(path)}"
            self.pass_or_die(f"before {what}")
            halved = self.reached(f"half of {what}")
            result = function(content, path, *arguments, **named)
            if halved:
                os.truncate(path, os.path.getsize(path) // 2)
                die()
            self.pass_or_die(f"after {what}")
            return result

        return save

    def _removing(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def remove(path: Any, *arguments: Any, **named: Any) -> Any:
            if not self.counts(path) or not os.path.isdir(path):
                return function(path, *arguments, **named)
            what = f"rmtree {self._shown(path)}"
            self.pass_or_die(f"before {what}")
            if self.reached(f"half of {what}"):
                files = sorted(file for file in Path(path).rglob("*") if file.is_file())
                for file in files[::2]:
                    file.unlink()
                die()
            result = function(path, *arguments, **named)
            self.pass_or_die(f"after {what}")
            return result

        return remove

    def _shown(self, path: Any) -> str:
        return os.path.abspath(os.fspath(path)).removeprefix(self._folder)


class _DyingFile:
    """A file whose first write, or where it is copied into, all of it, is cut in half by the end of the process."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def write(self, content: Any) -> int:
        self._file.write(content[: len(content) // 2])
        self._file.flush()
        return die()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> _DyingFile:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()
        os.truncate(self._file.name, os.path.getsize(self._file.name) // 2)
        die()


def die() -> int:
    """What `kill -9` does."""
    os.kill(os.getpid(), signal.SIGKILL)
    return 1 << 62  # not reached
