"""Where shards lie: a folder, or a URL that fsspec opens (s3://, gs://, https://, hf://, ...)."""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import fsspec.core

from model.errors import UserError
from model.files import open_regular
from utils.common.files import PARTIAL, written_aside
from utils.common.folder_lock import WRITING_LOCK, folder_lock
from utils.common.paths import check_writable, resolve
from utils.data.shards.layout import INDEX, SHARD_NAME
from utils.data.storage import ShardError

URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
FILE = "file://"  # a path on this machine
WAITS = (0.5, 2.0)  # seconds before reading from a URL is tried again
COPIED_AT_ONCE = 2**22  # bytes
MAX_REASON = 200  # characters of a driver's own message


class Place(Protocol):
    """A folder of shards, to read from and to write into."""

    root: str  # the absolute path that the files in the shards are below
    is_remote: bool

    def shown(self, name: str) -> str:
        """A file of the place, for messages."""

    def read(self, name: str, start: int, size: int) -> bytes:
        """A part of a file; shorter where the file ends. FileNotFoundError, or ShardError."""

    def chunks(self, name: str) -> Iterator[bytes]:
        """A whole file, part by part. FileNotFoundError, or ShardError."""

    def writing(self, name: str) -> Any:
        """A context: a file to write bytes to. OSError or UserError if that is not possible."""

    def held(self) -> AbstractContextManager[None]:
        """The place is free, and nobody else writes there meanwhile.

        Raises:
            UserError: something is there that would be overwritten, or somebody is writing.
        """


def place_of(text: str, flag: str) -> Place:
    """The place that a path or a URL means; flag: named in errors."""
    if URL.match(text) and not text.lower().startswith(FILE):
        return RemotePlace(text)
    path = resolve(text, flag)
    if not path:
        raise UserError(f"{flag} needs the folder or the URL of the shards, got {text!r}")
    return Folder(Path(path))


class Folder:
    """A folder of this machine, or of a network disk."""

    is_remote = False

    def __init__(self, path: Path) -> None:
        self.path = path
        self.root = os.path.abspath(path)

    def shown(self, name: str) -> str:
        return str(self.path / name)

    def read(self, name: str, start: int, size: int) -> bytes:
        with self._reading(name) as file:
            return os.pread(file.fileno(), min(size, os.fstat(file.fileno()).st_size), start)

    def chunks(self, name: str) -> Iterator[bytes]:
        with self._reading(name) as file:
            while chunk := file.read(COPIED_AT_ONCE):
                yield chunk

    @contextmanager
    def _reading(self, name: str) -> Iterator[BinaryIO]:
        try:
            with open_regular(self.path / name) as file:
                yield file
        except (FileNotFoundError, NotADirectoryError):
            raise
        except OSError as problem:
            raise ShardError(f"{self.shown(name)} cannot be read ({problem.strerror})") from None
        except UserError as problem:
            raise ShardError(str(problem)) from None

    @contextmanager
    def writing(self, name: str) -> Iterator[BinaryIO]:
        with written_aside(self.path / name) as partial, partial.open("wb") as file:
            yield file

    @contextmanager
    def held(self) -> Iterator[None]:
        """What an earlier, unfinished writing left is removed."""
        if os.path.lexists(self.path) and not self.path.is_dir():
            raise UserError(f"--out {self.path} is a file; name a folder")
        check_writable(self.path, "--out")
        with folder_lock(self.path, WRITING_LOCK, "--out"):
            self._check_free()
            yield

    def _check_free(self) -> None:
        names = {entry.name for entry in self.path.iterdir()} - {WRITING_LOCK}
        unfinished = {name for name in names if SHARD_NAME.fullmatch(name.removesuffix(PARTIAL))}
        if INDEX in names or names - unfinished - {INDEX + PARTIAL}:
            held = "shards" if INDEX in names else "other files"
            raise UserError(
                f"--out {self.path} holds {held} already; name another folder, or remove it first"
            )
        for name in names:
            (self.path / name).unlink()


class RemotePlace:
    """A folder behind a URL. Its file system is opened in each process anew, as connections do not survive a fork."""

    is_remote = True

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        scheme, _, rest = self.url.partition("://")
        self.root = f"/{scheme.lower()}:/{rest.strip('/')}"
        self._opened: tuple[int, Any, str] | None = None

    def shown(self, name: str) -> str:
        return f"{self.url}/{name}"

    def read(self, name: str, start: int, size: int) -> bytes:
        for wait in (*WAITS, None):
            with self._reading(name, wait) as (system, path):
                return bytes(system.cat_file(path, start=start, end=start + size))
        raise AssertionError("the last trial raises")

    def chunks(self, name: str) -> Iterator[bytes]:
        with self._reading(name) as (system, path), system.open(path, "rb") as source:
            while chunk := source.read(COPIED_AT_ONCE):
                yield chunk

    @contextmanager
    def _reading(self, name: str, wait: float | None = None) -> Iterator[tuple[Any, str]]:
        """The file system and the path of a file; what goes wrong inside is a ShardError, or waited for."""
        system, folder = self._system()
        try:
            yield system, f"{folder}/{name}"
        except FileNotFoundError:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self.shown(name)) from None
        except Exception as problem:  # drivers raise anything
            if wait is None:
                raise ShardError(
                    f"{self.shown(name)} cannot be read ({_reason(problem)}); is the network there?"
                ) from None
            time.sleep(wait)

    @contextmanager
    def writing(self, name: str) -> Iterator[BinaryIO]:
        system, folder = self._system()
        try:
            system.makedirs(folder, exist_ok=True)
            with system.open(f"{folder}/{name}", "wb") as file:
                yield file
        except (UserError, KeyboardInterrupt):
            raise
        except Exception as problem:  # drivers raise anything
            raise UserError(
                f"{self.shown(name)} cannot be written ({_reason(problem)}); may you write there?"
            ) from None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Of two writers at once nothing is known: object stores have no locks."""
        system, folder = self._system()
        try:
            is_there = system.exists(f"{folder}/{INDEX}")
        except Exception as problem:
            raise UserError(f"--out {self.url} cannot be reached ({_reason(problem)})") from None
        if is_there:
            raise UserError(f"--out {self.url} holds shards already; name another folder, or remove it first")
        yield

    def _system(self) -> tuple[Any, str]:
        """fsspec's file system in this process, and the folder as it names it."""
        if self._opened is None or self._opened[0] != os.getpid():
            try:
                system, folder = fsspec.core.url_to_fs(self.url, skip_instance_cache=True)
            except ImportError as problem:
                raise UserError(f"{self.url}: fsspec needs a package for it ({_reason(problem)})") from None
            except Exception as problem:  # an unknown protocol, missing credentials, ...
                raise UserError(f"{self.url} cannot be opened ({_reason(problem)})") from None
            self._opened = os.getpid(), system, folder.rstrip("/")
        return self._opened[1:]


def _reason(problem: BaseException) -> str:
    return " ".join(str(problem).split())[:MAX_REASON] or type(problem).__name__
