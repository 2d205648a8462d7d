"""Atomic writing of files: a temporary file, synced and renamed.

Every file that a command leaves is written here, or in a folder that is written aside as a whole. What hinders it - a
full disk, a read-only folder, a missing permission - is a WriteError: one line with the place, the reason, the cure.
"""

from __future__ import annotations

import fcntl
import io
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from PIL import Image

from model.files import is_regular
from model.write_errors import writing
from utils.common.paths import MAX_NAME_BYTES, shortened

PARTIAL = ".partial"  # end of the name of a file that is being written


@contextmanager
def written_aside(path: Path, *, sync: bool = True) -> Iterator[Path]:
    """A path to write to, which becomes `path` when the block ends; after an error nothing is left of it.

    Whoever reads `path`, also after a kill or a power cut, finds the old file or the new one. Its folder is made.
    Without `sync`, which takes a second for some hundred MB, a power cut may leave it empty or cut off.

    Raises:
        WriteError: it cannot be written.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with writing(path), _own_name(path) as partial:
        try:
            yield partial
            if sync:
                with partial.open("rb") as file:
                    os.fsync(file.fileno())
            os.replace(partial, path)
        except BaseException:
            with suppress(OSError):
                partial.unlink()
            raise
        if sync:
            sync_folder(path.parent)


@contextmanager
def _own_name(path: Path) -> Iterator[Path]:
    """The name to write to first. Another process that writes the same file at this time has another one.

    What a killed process left under the usual name is taken over, so that such names do not pile up.
    """
    name = shortened(path.name, MAX_NAME_BYTES - len(PARTIAL) - 9)
    partial = path.with_name(name + PARTIAL)
    while True:
        if partial.is_symlink():  # would be written through, to wherever it leads
            partial = path.with_name(f"{name}.{secrets.token_hex(4)}{PARTIAL}")
        is_regular(partial)
        handle = os.open(partial, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            with suppress(OSError):  # a network file system without locks
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    partial = path.with_name(f"{name}.{secrets.token_hex(4)}{PARTIAL}")
                    continue
            # Whoever had it until now may have given it its final name.
            if partial.exists() and partial.stat().st_ino == os.fstat(handle).st_ino:
                yield partial
                return
        finally:
            os.close(handle)


def write_whole(path: Path, content: str | bytes) -> Path:
    """Write a file by `written_aside`, text as UTF-8; returns its path."""
    with written_aside(path) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def write_png(path: Path, image: Image.Image) -> Path:
    """Write an image by `written_aside`; returns its path."""
    # In memory first: Pillow's own writer hides why a file cannot be written.
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return write_whole(path, stream.getvalue())


def append_whole(path: Path, text: str, *, sync: bool = False) -> None:
    """Append to a text file; what could be written of it only in part, as on a full disk, is taken back.

    Args:
        sync: it is on the disk when this returns.

    Raises:
        WriteError: it cannot be written.
        UserError: it is no regular file.
    """
    with writing(path):
        is_new = not is_regular(
            path
        )  # a pipe would keep the writer waiting, a device swallows what is written
        with path.open("ab", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            data = text.encode()
            try:
                while data:
                    data = data[file.write(data) :]
                if sync:
                    os.fsync(file.fileno())
            except BaseException:
                with suppress(OSError):
                    path.unlink() if is_new else file.truncate(size)
                raise


def open_lock(path: Path) -> IO[str]:
    """The file of a lock, made if it is not there.

    Raises:
        OSError: it cannot be made, or is a link.
        UserError: there is a folder, a pipe or a device.
    """
    is_regular(path)  # a pipe would keep the opener waiting
    return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666), "r+")


def sync_folder(folder: Path) -> None:
    """Sync a folder's entries to disk, where the file system supports it."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:  # not supported by some network file systems
        pass
    finally:
        os.close(handle)
