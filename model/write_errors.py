"""Errors of writing files, whoever wrote them: Python, torch, safetensors, tokenizers."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

CURES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "make room, or name another place"),
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), "make it writable, or name another place"),
    errno.EIO: "is the disk sound?",
}
OTHER_CURE = "name another place"
OF_RUST = re.compile(r"os error (\d+)")  # safetensors' and tokenizers' way to tell the number
# torch's writer tells no number.
OF_TORCH = re.compile("PytorchStreamWriter|inline_container|(open|write|enforce fail).*(file|archive)")


class WriteError(OSError):
    """A file could not be written. The message holds the place, the reason and the cure."""

    def __init__(self, number: int | None, message: str) -> None:
        super().__init__(number, message)

    def __str__(self) -> str:
        return str(self.strerror)


def write_error(
    problem: BaseException, path: str | Path, more: str = "", shown: str | Path = ""
) -> WriteError | None:
    """What hindered the writing of `path`, in one line; None for a problem of another kind.

    Args:
        problem: as raised by whoever wrote. An error about a file that is elsewhere is of another kind.
        more: end of the message, for instance what is left.
        shown: name of the place in the message, where it is not `path`.
    """
    found = _number_and_reason(problem, Path(path))
    if found is None:
        return None
    number, reason = found
    cure = CURES.get(number or 0, OTHER_CURE)
    return WriteError(number, f"{shown or path} cannot be written ({reason}); {cure}{more}")


@contextmanager
def writing(path: str | Path, more: str = "", shown: str | Path = "") -> Iterator[None]:
    """Errors of writing `path`, or into it, inside the block become a WriteError; all others pass as they are.

    Args: see `write_error`.
    """
    try:
        yield
    except WriteError:
        raise
    except Exception as problem:
        error = write_error(problem, path, more, shown)
        if error is None:
            raise
        raise error from problem


def _number_and_reason(problem: BaseException, path: Path) -> tuple[int | None, str] | None:
    text = " ".join(str(problem).split())
    if isinstance(problem, OSError):
        if problem.errno is None or not _is_about(problem, path):
            return None
        return problem.errno, problem.strerror or text
    if told := OF_RUST.search(text):  # tokenizers raises a plain Exception
        return int(told[1]), os.strerror(int(told[1]))
    if isinstance(problem, SafetensorError):
        return None, text
    if isinstance(problem, RuntimeError) and OF_TORCH.search(text):
        inner = problem.__context__
        if isinstance(inner, OSError) and inner.strerror:
            return inner.errno, inner.strerror
        return None, text.split(". ")[0]
    return None


def _is_about(problem: OSError, path: Path) -> bool:
    """Whether an error is about `path`, what is in it or a folder that it is in; a write names no file."""
    if problem.filename is None:
        return True
    named, place = (os.path.abspath(os.fsdecode(name)) for name in (problem.filename, path))
    return (
        os.path.dirname(named) == os.path.dirname(place)  # written beside it
        or named.startswith(place + os.sep)
        or place.startswith(named.rstrip(os.sep) + os.sep)
        or named == place
    )
