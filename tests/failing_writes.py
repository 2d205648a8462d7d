"""Writes that fail: the k-th write below a folder raises what a full or read-only disk does; a disk that is full."""

from __future__ import annotations

import builtins
import errno
import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from safetensors import SafetensorError

NUMBERS = (errno.ENOSPC, errno.EROFS, errno.EACCES)
NATIVE = "Error while serializing: I/O error: No space left on device (os error 28)"


class Writes:
    """Counts the writes below `root`: opening, writing, syncing, renaming, making folders, the writers in C and Rust.

    fails_at: this one fails, after half of what it writes; None: none does.
    """

    def __init__(self, root: Path, fails_at: int | None = None) -> None:
        self.root, self.fails_at = str(root), fails_at
        self.count = 0
        self.failed = ""

    def is_below(self, path: Any) -> bool:
        return isinstance(path, str | os.PathLike) and os.path.abspath(path).startswith(self.root)

    def due(self, what: str, path: Any) -> bool:
        """Count a write; whether it is the one that fails."""
        self.count += 1
        if self.count - 1 != self.fails_at:
            return False
        self.failed = f"{what} {path}"
        return True

    def error(self, path: Any = None) -> OSError:
        number = NUMBERS[(self.fails_at or 0) % len(NUMBERS)]
        return OSError(number, os.strerror(number), *([str(path)] if path is not None else []))


class FailingFile:
    """A file that is open for writing."""

    def __init__(self, file: Any, writes: Writes, path: Any) -> None:
        self._file, self._writes, self._path = file, writes, path

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> FailingFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, data: Any) -> int:
        if self._writes.due("write", self._path):
            self._file.write(data[: len(data) // 2])
            raise self._writes.error()  # without a name, as the system's
        return self._file.write(data)


@contextmanager
def watched_writes(root: Path, fails_at: int | None = None) -> Iterator[Writes]:
    """Count the writes below a folder inside the block, and let one fail."""
    writes = Writes(root, fails_at)
    real_open, os_mkdir = io.open, os.mkdir
    torch_save, save_file = torch.save, safetensors.torch.save_file

    def open_watched(file: Any, mode: str = "r", *arguments: Any, **named: Any) -> Any:
        if not set(mode) & set("wax+") or "opener" in named or not writes.is_below(file):
            return real_open(file, mode, *arguments, **named)
        if writes.due("open", file):
            raise writes.error(file)
        return FailingFile(real_open(file, mode, *arguments, **named), writes, file)

    def watched(function: Callable[..., Any], position: int) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            target = arguments[position]
            if isinstance(target, int):  # of an open file
                target = os.path.realpath(f"/proc/self/fd/{target}")
                target = target if os.path.isfile(target) else None
            is_idle = function is os_mkdir and (
                os.path.isdir(target) or not os.path.isdir(os.path.dirname(target))
            )
            if not is_idle and writes.is_below(target) and writes.due(function.__name__, target):
                raise writes.error(target if isinstance(arguments[position], str | os.PathLike) else None)
            return function(*arguments, **named)

        return call

    def torch_save_watched(content: Any, file: Any, *arguments: Any, **named: Any) -> None:
        if writes.is_below(file) and writes.due("torch.save", file):
            Path(file).write_bytes(b"PK")
            raise RuntimeError(
                "[enforce fail at inline_container.cc:668] . PytorchStreamWriter failed writing file"
            )
        torch_save(content, file, *arguments, **named)

    def save_file_watched(tensors: Any, file: Any, *arguments: Any, **named: Any) -> None:
        if writes.is_below(file) and writes.due("save_file", file):
            Path(file).write_bytes(b"\0")
            raise SafetensorError(NATIVE)
        save_file(tensors, file, *arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        for owner in (builtins, io):
            patch.setattr(owner, "open", open_watched)
        for name, position in (("replace", 1), ("rename", 1), ("mkdir", 0), ("fsync", 0)):
            patch.setattr(os, name, watched(getattr(os, name), position))
        patch.setattr(torch, "save", torch_save_watched)
        for module in list(sys.modules.values()):
            if getattr(module, "__dict__", {}).get("save_file") is save_file:
                patch.setattr(module, "save_file", save_file_watched)
        yield writes


@contextmanager
def small_disk(place: Path, kilobytes: int) -> Iterator[None]:
    """A disk of that size, mounted on a folder; skips the test where nobody may mount."""
    place.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(place)]
    try:
        done = subprocess.run(command, capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount")
    if done.returncode:
        pytest.skip("this user may not mount a disk")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def assert_whole(folder: Path, complete: dict[str, bytes]) -> None:
    """Every file is as in a run that was not hindered, or not there; a log of lines may end earlier."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_dir():
            continue
        assert name in complete, f"{name} is left"
        content = path.read_bytes()
        if path.suffix == ".jsonl":
            assert complete[name].startswith(content), name
            assert content.endswith(b"\n"), name
        elif name.endswith("report.json"):
            assert content.endswith(b"}\n"), name  # it holds the time
        else:
            assert content == complete[name], f"{name} is half"


def files_in(folder: Path) -> dict[str, bytes]:
    """The content of every file below a folder."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
