"""The cache of indexes: built by one process, kept in a file, read by all.

    FOLDER/OwnCoco_train-1f0c9a....index     class, split, hash of the paths and options that it depends on

An index is used only while nothing that it was built from has changed: the annotation files, the folders that were
listed, and this program's own code for reading them. Otherwise, or when the file is damaged, it is built anew. While
one process builds, the others wait for its lock, which ends with the process, whatever ends it. Any of the files can
be removed at any time: whoever has one open keeps it.

Small annotation files are read directly. Where nothing can be written, each process has the index in memory.
"""

from __future__ import annotations

import fcntl
import gc
import hashlib
import logging
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Generic, TypeVar

from model.errors import UserError
from utils.common.commands import one_line
from utils.common.files import open_lock, written_aside
from utils.common.memory import give_back_memory
from utils.common.paths import user_cache_folder
from utils.data import storage
from utils.data.index.rows import DamagedIndexError, RowFile, Rows, write_rows
from utils.data.index.sources import Sources, recording

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Facts = TypeVar("Facts")

OFF = "none"  # value of --index_cache: every process has its own index in memory
MIN_BYTES = 4 * 2**20  # of the annotation files; smaller ones are read faster than they are looked up
SUFFIX = ".index"

_place = ""  # value of --index_cache
_told: set[str] = set()  # problems that were logged


@dataclass(frozen=True, kw_only=True)
class Kept(Generic[Item, Facts]):
    """An index as it was opened, or built."""

    items: Sequence[Item]
    facts: Facts
    is_new: bool  # built by this process, just now


@dataclass(frozen=True)
class WhyNot:
    """Why a file is not used."""

    level: int  # of logging
    reason: str


@dataclass(frozen=True, kw_only=True)
class Head(Generic[Facts]):
    """What a file of rows holds besides its items."""

    key: str
    code: bytes
    sources: Sources
    facts: Facts


def use_index_cache(place: str) -> None:
    """Set the folder of the cache for this process: a path, "" for the user's own, "none" for no cache."""
    global _place
    _place = place


def cache_folder() -> Path | None:
    """The folder of the cache; None if it is turned off."""
    if _place == OFF:
        return None
    return Path(_place) if _place else user_cache_folder("index")


def open_index(
    key: Sequence[Any],
    kinds: tuple[type[Item], Any],
    files: Iterable[Path],
    build: Callable[[], tuple[Sequence[Item], Facts]],
) -> Kept[Item, Facts]:
    """The index that `build` makes, from the cache if it is there and nothing has changed.

    Args:
        key: everything that decides what `build` makes, but for the content of files and folders. The first two are
            texts for the name of the file.
        kinds: the types of an item, and of the facts.
        files: the annotation files.
        build: reads by `read_source` and `note_folder`. What it raises is raised.
    """
    folder = cache_folder()
    if folder is None or _num_bytes(files) < MIN_BYTES:
        return _built(build)
    whole = repr(tuple(key))
    readable = re.sub(r"[^A-Za-z0-9_+]+", "_", f"{key[0]} {key[1]}")[:60]
    name = f"{readable}-{hashlib.sha256(whole.encode()).hexdigest()[:24]}"
    path = folder / f"{name}{SUFFIX}"
    kept: Kept[Item, Facts] | None
    kept, _ = _load(path, whole, kinds)
    if kept is not None:
        return kept
    with _alone(path) as may_write:
        kept, why_not = _load(path, whole, kinds)  # perhaps built while this process waited
        if kept is not None:
            return kept
        if why_not is not None:
            logger.log(why_not.level, "%s: built anew, as %s", path, why_not.reason)
        started = time.monotonic()
        with _without_collector(), recording() as sources:
            index = _built(build)
            if may_write and _write(path, whole, index, sources):
                logger.info("%s: written in %.1f s, for all processes", path, time.monotonic() - started)
                kept, _ = _load(path, whole, kinds, is_new=True)
    if kept is None:
        return index
    del index
    give_back_memory()
    return kept


def _num_bytes(files: Iterable[Path]) -> int:
    total = 0
    for path in files:
        with suppress(OSError):  # whoever reads it says what is wrong with it
            total += storage.size_of(path)
    return total


def _built(build: Callable[[], tuple[Sequence[Item], Facts]]) -> Kept[Item, Facts]:
    items, facts = build()
    return Kept(items=items, facts=facts, is_new=True)


def _load(
    path: Path, key: str, kinds: tuple[type[Item], Any], *, is_new: bool = False
) -> tuple[Kept[Item, Facts] | None, WhyNot | None]:
    """The index in a file, or why it is of no use; neither if there is none. Not verified where it `is_new`."""
    item_kind, facts_kind = kinds
    try:
        file = RowFile(path)
        if not is_new:
            file.verify()
        head = file.head(Head[facts_kind])  # type: ignore[valid-type]
        if head.key != key:
            raise DamagedIndexError("it is another index")
        if head.code != digest_of_code():
            return None, WhyNot(logging.INFO, "it is of another version of this program")
        if not is_new and (changed := head.sources.changed()):
            return None, WhyNot(logging.INFO, f"{changed} has changed")
        return Kept(items=Rows(file, item_kind), facts=head.facts, is_new=is_new), None
    except (FileNotFoundError, NotADirectoryError):
        return None, None
    except OSError as problem:
        return None, WhyNot(logging.WARNING, f"it cannot be read: {problem.strerror}")
    except DamagedIndexError as problem:
        return None, WhyNot(logging.WARNING, f"it is damaged: {problem}")


def _write(path: Path, key: str, index: Kept[Item, Facts], sources: Sources) -> bool:
    """Whether the index could be written."""
    head = Head(key=key, code=digest_of_code(), sources=sources, facts=index.facts)
    try:
        # Not synced: a file that a power cut spoils does not fit its checksum.
        with written_aside(path, sync=False) as partial:
            write_rows(partial, index.items, head)
    except (OSError, TypeError, ValueError, OverflowError, RecursionError) as problem:
        _tell_once(f"the index of {path.stem} stays in the memory of each process: {problem}")
        return False
    return True


@contextmanager
def _alone(path: Path) -> Iterator[bool]:
    """Holds the lock of a file of the cache; False where it cannot be had, as in a folder that is read-only."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = open_lock(path.with_suffix(".lock"))
    except (OSError, UserError) as problem:
        _tell_once(
            f"--index_cache {path.parent} cannot be written to ({one_line(problem)}): every process reads the "
            "annotations by itself; name another folder"
        )
        yield False
        return
    with lock:
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                logger.info("%s: another process builds it; waiting", path)
                fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as problem:
            _tell_once(
                f"--index_cache {path.parent} has no file locks ({problem.strerror}); name another folder"
            )
            yield False
            return
        yield True


def _tell_once(problem: str) -> None:
    if problem not in _told:
        _told.add(problem)
        logger.warning("%s", problem)


@contextmanager
def _without_collector() -> Iterator[None]:
    """Millions of new objects, none of them garbage: looking for cycles among them takes a third of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@cache
def digest_of_code() -> bytes:
    """A hash of the code that reads annotations: another version may read the same files as something else."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.digest()
