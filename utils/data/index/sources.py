"""What an index was built from: the files that were read, and the folders that were listed, as they were then.

    with recording() as sources:
        build()                 # reads by `read_source` and lists by `note_folder`
    sources.changed()           # later, perhaps in another process: "" or what is no longer as it was

A file counts as unchanged when its size, times and inode are, or else when its content has the same hash: files are
copied between disks, and an editor may put the old time back.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path

from utils.data import storage

# A file may change twice within a clock tick, without a new time: times this young say nothing.
YOUNG = 2 * 10**9  # nanoseconds
UNSETTLED = (0, 0, 0)  # instead of a stamp that says nothing
NO_FOLDER = b""  # instead of the hash of the names in it
CHUNK = 2**22  # bytes


@dataclass(frozen=True)
class FileState:
    """One file as it was read."""

    size: int
    stamp: tuple[int, int, int]  # mtime and ctime in nanoseconds, inode; zeros: only the content counts
    digest: bytes  # SHA-256 of the content


@dataclass
class Sources:
    """Path -> state of everything that was read while it was recorded."""

    files: dict[str, FileState] = field(default_factory=dict)
    folders: dict[str, bytes] = field(default_factory=dict)  # hash of the sorted names, or NO_FOLDER

    def changed(self) -> str:
        """The first file or folder that is no longer as it was; "" if all are."""
        for path, state in self.files.items():
            if not is_as_it_was(path, state):
                return path
        for path, digest in self.folders.items():
            if digest_of_folder(path) != digest:
                return path
        return ""


_recorded: ContextVar[Sources | None] = ContextVar("recorded", default=None)


def recording() -> AbstractContextManager[Sources]:
    """Records what is read inside the block."""
    return storage.set_inside(_recorded, Sources())


def read_source(path: str | Path) -> bytes:
    """The content of a regular file, recorded. Raises UserError for a folder, a pipe or a device."""
    sources = _recorded.get()
    started = time.time_ns()
    with storage.open_file(path) as file:
        in_shards = storage.state_in_shards(path)
        before = None if in_shards else os.fstat(file.fileno())
        content = file.read()
        after = None if in_shards else os.fstat(file.fileno())
    if sources is not None:
        stamp = in_shards[1] if in_shards else UNSETTLED
        if before and after and stamp_of(before) == stamp_of(after) and after.st_ctime_ns < started - YOUNG:
            stamp = stamp_of(after)
        sources.files[os.path.abspath(path)] = FileState(
            size=len(content), stamp=stamp, digest=hashlib.sha256(content).digest()
        )
    return content


def note_folder(folder: Path, names: Iterable[str] | None) -> None:
    """Record the names in a folder; None where there is no folder."""
    if (sources := _recorded.get()) is not None:
        sources.folders[os.path.abspath(folder)] = NO_FOLDER if names is None else digest_of_names(names)


def is_as_it_was(path: str, state: FileState) -> bool:
    """Whether a file still has the content that it was read with."""
    try:
        if in_shards := storage.state_in_shards(path):
            size, stamp = in_shards
            if size != state.size or stamp == tuple(state.stamp):
                return size == state.size
        with storage.open_file(path) as file:
            if not in_shards:
                now = os.fstat(file.fileno())
                if now.st_size != state.size:
                    return False
                if stamp_of(now) == tuple(state.stamp):
                    return True
            digest = hashlib.sha256()
            while chunk := file.read(CHUNK):
                digest.update(chunk)
    except (OSError, ValueError):
        return False
    return digest.digest() == state.digest


def stamp_of(status: os.stat_result) -> tuple[int, int, int]:
    """What changes when a file does: mtime and ctime in nanoseconds, inode."""
    return status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def digest_of_folder(path: str) -> bytes | None:
    """The hash of the names in a folder, NO_FOLDER if there is none; None if it cannot be read."""
    try:
        return digest_of_names(storage.names(path)) if storage.is_folder(path) else NO_FOLDER
    except OSError:
        return None


def digest_of_names(names: Iterable[str]) -> bytes:
    """A hash of names, whatever their order."""
    return hashlib.sha256(b"\0".join(sorted(map(os.fsencode, names)))).digest()
