"""The cache of shards on a local disk: each is copied once per machine, whichever process needs it first.

    FOLDER/1f0c9a....tar      a shard, called by its SHA-256
    FOLDER/77ab20....index    the index of a folder of shards, likewise

Files are called by their content, so none is ever stale, and any can be removed at any time. While one process
copies a shard, the others that need it wait for its lock, which ends with the process, whatever ends it; the copy is
verified, then renamed. What does not fit below the limit is read from where it lies, part by part: nothing is
evicted, as all shards of a data set are equally likely to be needed next.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from model.errors import UserError
from utils.common.commands import one_line
from utils.common.files import open_lock
from utils.common.paths import user_cache_folder, writable_folder
from utils.data.index.rows import DIGEST_SIZE, DamagedIndexError, RowFile
from utils.data.shards.layout import ShardFile
from utils.data.shards.place import Place
from utils.data.storage import ShardError

logger = logging.getLogger(__name__)

GIGABYTE = 10**9
SHARD, INDEX, PARTIAL, LOCK = ".tar", ".index", ".partial", ".lock"
TRIALS = 2  # of copying, before what arrives is called damaged

_folder, _max_gb = "", None
_told: set[str] = set()  # problems that were logged


def use_shard_cache(folder: str, max_gb: float | None) -> None:
    """Set the cache for this process: a path, or "" for the user's own and only for what lies behind a URL."""
    global _folder, _max_gb
    _folder, _max_gb = folder, max_gb


def shard_cache(place: Place) -> ShardCache | None:
    """The cache for the shards of a place; None for a folder of this machine, unless a cache was asked for."""
    if not _folder and not place.is_remote:
        return None
    folder = Path(_folder) if _folder else user_cache_folder("shards")
    if folder is None:
        raise ShardError(
            f"{place.shown('')} needs a cache, and this user has no home; name a folder: --shard_cache"
        )
    return ShardCache(writable_folder(folder, "--shard_cache"), _max_gb)


class ShardCache:
    """Copies of shards in a folder, together of at most `max_gb` (10^9 bytes); None: no limit."""

    def __init__(self, folder: Path, max_gb: float | None = None) -> None:
        self.folder = folder
        self.max_bytes = None if max_gb is None else int(max_gb * GIGABYTE)
        self._left_out: set[bytes] = set()  # shards that do not fit

    def shard(self, place: Place, shard: ShardFile) -> Path | None:
        """The copy of a shard, made if it is not there; None if it does not fit."""
        if shard.sha256 in self._left_out:
            return None
        found = self._copy(place, shard.name, f"{shard.sha256.hex()}{SHARD}", shard.size, shard.sha256)
        if found is None:
            self._left_out.add(shard.sha256)
        return found

    def index(self, place: Place, name: str, digest: bytes) -> Path:
        """The copy of an index; `digest` is what it says of its content. DamagedIndexError if that is not true."""
        found = self._copy(place, name, f"{digest.hex()}{INDEX}", None, digest)
        assert found is not None, "an index has no limit"
        return found

    def _copy(self, place: Place, name: str, own_name: str, size: int | None, digest: bytes) -> Path | None:
        """size: of a shard; None for an index, which always fits."""
        path = self.folder / own_name
        if _is_copy(path, size):
            return path
        with self._lock(own_name, f"{place.shown(name)}: another process copies it; waiting"):
            if _is_copy(path, size):
                return path
            partial = path.with_name(own_name + PARTIAL)
            try:
                if not _is_file(partial):
                    partial.unlink(missing_ok=True)  # a link, which would be written through
                if size is not None and not self._reserve(partial, size):
                    return None
                self._fetch(place, name, partial, size, digest)
                if size is None:
                    _check_index(partial, digest)
                os.replace(partial, path)
            except OSError as problem:
                if isinstance(problem, FileNotFoundError) and problem.filename == place.shown(name):
                    raise
                if size is None or problem.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise ShardError(
                        f"--shard_cache {self.folder} cannot be written to ({problem.strerror}); name another folder"
                    ) from None
                self._tell(f"--shard_cache {self.folder}: the disk is full")
                return None
            finally:
                with suppress(OSError):
                    partial.unlink(missing_ok=True)
        return path

    def _fetch(self, place: Place, name: str, target: Path, size: int | None, sha256: bytes) -> None:
        """Copy and verify. ShardError if what arrives is not what the index promises."""
        for trial in range(1, TRIALS + 1):
            digest, num_copied = hashlib.sha256(), 0
            try:
                with target.open("r+b" if target.exists() else "wb") as file:
                    for chunk in place.chunks(name):
                        num_copied += len(chunk)
                        if size is not None and num_copied > size:
                            break
                        digest.update(chunk)
                        file.write(chunk)
                    file.truncate()
                if size is not None and num_copied != size:
                    raise ShardError(f"{place.shown(name)} {wrong_size(num_copied, size)}")
                if size is not None and digest.digest() != sha256:
                    raise ShardError(f"{place.shown(name)} is damaged: {WRONG_SUM}")
                return
            except ShardError:
                if trial == TRIALS:
                    raise

    def _reserve(self, partial: Path, size: int) -> bool:
        """Whether a copy of this size fits; if so, a file of that size holds its room."""
        if self.max_bytes is None:
            return True
        with self._lock("size"):
            if self._size() + size > self.max_bytes:
                self._remove_unfinished(partial)
            if self._size() + size > self.max_bytes:
                self._tell(
                    f"--shard_cache {self.folder} is full (--shard_cache_gb {self.max_bytes / GIGABYTE:g})"
                )
                return False
            with partial.open("wb") as file:
                file.truncate(size)
        return True

    def _size(self) -> int:
        """Bytes of all shards, finished or reserved."""
        with os.scandir(self.folder) as entries:
            names = [entry.name for entry in entries if entry.name.endswith((SHARD, SHARD + PARTIAL))]
        total = 0
        for name in names:
            with suppress(FileNotFoundError):
                total += (self.folder / name).stat().st_size
        return total

    def _remove_unfinished(self, own: Path) -> None:
        """Remove what processes left that were killed while they copied."""
        for partial in self.folder.glob(f"*{SHARD}{PARTIAL}"):
            if partial == own:
                continue
            with (
                suppress(BlockingIOError),
                open_lock(self.folder / partial.name.replace(PARTIAL, LOCK)) as lock,
            ):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                partial.unlink(missing_ok=True)

    @contextmanager
    def _lock(self, name: str, waiting: str = "") -> Iterator[None]:
        try:
            lock = open_lock(self.folder / f"{name}{LOCK}")
        except (OSError, UserError) as problem:
            raise ShardError(
                f"--shard_cache {self.folder} cannot be written to ({one_line(problem)}); name another folder"
            ) from None
        with lock:
            try:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    if waiting:
                        logger.info("%s", waiting)
                    fcntl.flock(lock, fcntl.LOCK_EX)
            except OSError as problem:
                raise ShardError(
                    f"--shard_cache {self.folder} has no file locks ({problem.strerror}); name another folder"
                ) from None
            yield

    def _tell(self, problem: str) -> None:
        if problem not in _told:
            _told.add(problem)
            logger.warning("%s; what is not in it is read from where it lies", problem)


WRONG_SUM = "its content does not fit its sum in the index; copy it again, or shard the data again"


def wrong_size(found: int, size: int) -> str:
    """For messages: that a shard is cut off, or is another file."""
    more = "was cut off" if found < size else "is another file"
    found_text = f"more than {size}" if found > size else f"{found}"
    return f"{more}: {found_text} bytes, of {size}; copy it again, or shard the data again"


def _is_copy(path: Path, size: int | None) -> bool:
    """Whether a copy is there; one of another size was cut off by a power cut, and is made anew, as is a link."""
    return _is_file(path) and (size is None or path.stat().st_size == size)


def _is_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _check_index(path: Path, digest: bytes) -> None:
    """DamagedIndexError for a copy that is not the whole index."""
    file = RowFile(path)
    file.verify()
    if file.prefix[-DIGEST_SIZE:] != digest:
        raise DamagedIndexError("it was replaced while it was copied")
