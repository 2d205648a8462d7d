"""What of a data set can be used, and why the rest of it cannot."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from model.errors import UserError
from utils.data.types import UnusableItemError, cut

# Why an item is left out, as reports count it.
MISSING, UNLABELLED, UNUSABLE = "missing", "without annotation", "unusable"


class NothingUsableError(FileNotFoundError):
    """A data set exists, but none of its items can be used."""


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """How many of the items that an annotation file or a folder lists can be used, and why the others cannot."""

    unit: str  # what is counted: images, references, lines, entries
    num_listed: int
    num_used: int
    left_out: Mapping[str, int] = field(default_factory=dict)  # reason -> how many
    examples: tuple[str, ...] = ()  # "path: reason" of the first ones left out

    def __str__(self) -> str:
        """ "2 of 10 images; 8 missing", or "all 10 images"."""
        if not self.left_out:
            return f"all {self.num_listed} {self.unit}"
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.left_out.items())
        return f"{self.num_used} of {self.num_listed} {self.unit}; {reasons}"


def reason_of(problem: Exception, path: str | Path) -> str:
    """The message of an exception without the file name; with its type where it is not one of the expected types."""
    if isinstance(problem, UnusableItemError):
        return problem.reason if problem.path == str(path) else str(problem)
    if isinstance(problem, OSError | ValueError):
        return str(problem).removeprefix(f"{path}: ")
    if isinstance(problem, KeyError):
        return f"missing or malformed {problem}"
    return f"missing or malformed ({type(problem).__name__}: {problem})"


@contextmanager
def well_formed(path: str | Path) -> Iterator[None]:
    """Turn any unexpected exception of a block that reads an annotation file into a UserError naming the file."""
    try:
        yield
    except (OSError, UserError):
        raise
    except Exception as problem:
        raise UserError(f"{path}: {cut(reason_of(problem, path))}") from problem
