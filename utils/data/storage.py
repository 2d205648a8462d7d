"""Where the files of a data set lie: on disk, or in shards that stand for a folder. All data sets read and list here.

Shards are mounted at a path (`mount`), below which files are members of them; any other path is one of the disk. So a
data set works alike from both. A path below a mounted one never leads to the disk, whatever `..` it holds.

`recording` tells what was asked inside a block, so that shards give the same answers: see utils/data/tools/shard.py.
"""

from __future__ import annotations

import errno
import io
import os
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Protocol, TypeVar

from model.errors import UserError
from model.files import decode_text, open_regular

T = TypeVar("T")
Stamp = tuple[int, int, int]  # another one when the content is another


class ShardError(UserError):
    """Shards that cannot be read: damaged, cut off, out of reach. Ends a run, as no item of the data is at fault."""


class Tree(Protocol):
    """Mounted shards. A name is a path below the mounted one, "" for that itself."""

    def is_folder(self, name: str) -> bool:
        """Whether it is a folder."""

    def is_file(self, name: str) -> bool:
        """Whether it is a file."""

    def listing(self, name: str) -> Sequence[tuple[str, bool]]:
        """The names in a folder, and whether each is a folder."""

    def read(self, name: str) -> bytes:
        """The content of a file. Raises ShardError."""

    def state(self, name: str) -> tuple[int, Stamp]:
        """The size of a file in bytes, and its stamp."""


@dataclass
class Asked:
    """What was asked in a block of `recording`, by absolute path."""

    read: dict[str, None] = field(default_factory=dict)  # files; an ordered set
    folders: dict[str, None] = field(default_factory=dict)
    listed: dict[str, Sequence[tuple[str, bool]]] = field(default_factory=dict)


_mounted: dict[str, Tree] = {}
_asked: ContextVar[Asked | None] = ContextVar("asked", default=None)


def mount(root: str, tree: Tree) -> None:
    """Let `tree` stand for what is below the absolute path `root`."""
    _mounted[root] = tree


def mounted() -> Mapping[str, Tree]:
    """What is mounted: path -> shards."""
    return _mounted


@contextmanager
def set_inside(variable: ContextVar[T | None], value: T) -> Iterator[T]:
    """`variable` is `value` inside the block, and what it was after it."""
    token = variable.set(value)
    try:
        yield value
    finally:
        variable.reset(token)


def recording() -> AbstractContextManager[Asked]:
    """Records what is asked inside the block."""
    return set_inside(_asked, Asked())


def is_in_shards(path: str | Path) -> bool:
    """Whether a path is below a mounted one."""
    return _find(path) is not None


def open_file(path: str | Path) -> BinaryIO:
    """A regular file, open for reading bytes.

    Raises UserError for a folder, a pipe or a device, OSError if it is not there, ShardError for damaged shards.
    """
    if (asked := _asked.get()) is not None:
        asked.read[os.path.abspath(path)] = None
    found = _find(path)
    if found is None:
        return open_regular(path)
    tree, name = found
    if name is not None and tree.is_folder(name):
        raise UserError(f"{path}: is a folder, not a file; name a regular file")
    if name is None or not tree.is_file(name):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    return io.BytesIO(tree.read(name))


def read_text(path: str | Path) -> str:
    """The text of a file; see `model.files.read_text`."""
    with open_file(path) as file:
        return decode_text(file.read(), path)


def is_file(path: str | Path) -> bool:
    """Whether a regular file is there."""
    found = _find(path)
    if found is None:
        return os.path.isfile(path)
    tree, name = found
    return name is not None and tree.is_file(name)


def is_folder(path: str | Path) -> bool:
    """Whether a folder is there."""
    found = _find(path)
    if found is None:
        there = os.path.isdir(path)
        if there and (asked := _asked.get()) is not None:
            asked.folders[os.path.abspath(path)] = None
        return there
    tree, name = found
    return name is not None and tree.is_folder(name)


def is_named(path: str | Path) -> bool:
    """Whether something has this name, be it a link that leads nowhere.

    What somebody put there is read, or is an error; only where nothing is, the next choice is taken instead.
    """
    if _find(path) is None:
        return is_folder(path) or os.path.lexists(path)
    return is_folder(path) or is_file(path)


def scan(folder: str | Path) -> Sequence[tuple[str, bool]]:
    """The names in a folder in any order, and whether each is a folder. Raises OSError if it is none."""
    found = _find(folder)
    if found is None:
        with os.scandir(folder) as entries:
            listed = [(entry.name, entry.is_dir()) for entry in entries]
        if (asked := _asked.get()) is not None:
            asked.listed[os.path.abspath(folder)] = listed
        return listed
    tree, name = found
    if name is None or not tree.is_folder(name):
        number = errno.ENOENT if name is None or not tree.is_file(name) else errno.ENOTDIR
        raise OSError(number, os.strerror(number), str(folder))
    return tree.listing(name)


def names(folder: str | Path) -> list[str]:
    """The names in a folder, in any order. Raises OSError if it is none."""
    if _find(folder) is None and _asked.get() is None:
        return os.listdir(folder)  # does not look at what each of them is
    return [name for name, _ in scan(folder)]


def size_of(path: str | Path) -> int:
    """The size of a file in bytes. Raises OSError if there is none."""
    state = state_in_shards(path)
    return os.path.getsize(path) if state is None else state[0]


def state_in_shards(path: str | Path) -> tuple[int, Stamp] | None:
    """Size and stamp of a file in shards; None for a path on disk. Raises OSError if it is not in them."""
    found = _find(path)
    if found is None:
        return None
    tree, name = found
    if name is None or not tree.is_file(name):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    return tree.state(name)


def _find(path: str | Path) -> tuple[Tree, str | None] | None:
    """The shards that a path leads into, and its name there; the name is None where `..` leads out of them."""
    if not _mounted:
        return None
    text = os.fspath(path)
    for root, tree in _mounted.items():
        if text == root:
            return tree, ""
        if text.startswith(f"{root}/"):
            name = posixpath.normpath(text[len(root) + 1 :].lstrip("/") or ".")
            return tree, "" if name == "." else None if name.split("/")[0] == ".." else name
    return None
