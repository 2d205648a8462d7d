"""Class lists and id tables of the published data sets: text files in this folder, in the official order.

`NAME.txt` has one class per line: the official name and, after a tab, the spoken name used in queries and answers
(the same when there is no tab). `NAME_ids.txt` gives the meaning of each label value: the value, a tab, and the
official name of a class, or `ignore`. Lines that start with # are comments.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import overload

import numpy as np

from model.errors import UserError
from model.files import read_text, split_lines
from model.generation.answers import normalize_name
from utils.common.label_values import IGNORE, UNDEFINED

CLASSES_DIR = Path(__file__).parent
CONTROL = {
    "Cc",
    "Cs",
    "Zl",
    "Zp",
}  # Unicode categories: control, lone surrogate, line and paragraph separator


class ClassList(Sequence[str]):
    """The spoken names of a data set's classes, in the official order; `official` has the official names."""

    def __init__(self, official: Sequence[str], spoken: Sequence[str], source: str) -> None:
        for names in (official, spoken):
            seen: dict[str, str] = {}
            for name in names:
                check_name(name, source)
                key = normalize_name(name)
                if not key:
                    raise UserError(f"{source}: a class has no name")
                if key in seen:
                    raise UserError(
                        f"{source}: classes {seen[key]!r} and {name!r} have the same name; make them differ"
                    )
                seen[key] = name
        self.official = tuple(official)
        self.spoken = tuple(spoken)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        return self.spoken[index]

    def __len__(self) -> int:
        return len(self.spoken)


def check_name(name: str, source: str) -> None:
    """UserError when a class name holds a control character, which cannot be printed or typed."""
    for character in name:
        if unicodedata.category(character) in CONTROL:
            raise UserError(
                f"{source}: {name!r} holds the control character U+{ord(character):04X}; remove it (lines end at "
                "\\n or \\r\\n alone)"
            )


def load_class_list(name: str) -> ClassList:
    """The class list of a published data set; utils/data/class_file.py reads the class files of users.

    Raises FileNotFoundError, and UserError for an empty list or one with duplicates after normalising.
    """
    path = CLASSES_DIR / f"{name}.txt"
    rows = list(_rows(path))
    if not rows:
        raise UserError(f"{path}: no classes; write one per line")
    return ClassList([row[0] for row in rows], [row[-1] for row in rows], str(path))


def load_id_table(name: str) -> np.ndarray:
    """The id table of a published data set; see `make_id_table`."""
    official = load_class_list(name).official
    return make_id_table(
        (int(value), IGNORE if class_name == "ignore" else official.index(class_name))
        for value, class_name in _rows(CLASSES_DIR / f"{name}_ids.txt")
    )


def make_id_table(meanings: Iterable[tuple[int, int]]) -> np.ndarray:
    """(num_values,) int32: label value -> class index, IGNORE or NOTHING; UNDEFINED for values that must not occur.

    `meanings` are pairs of a label value and one of these. The table has at least 256 entries.
    """
    pairs = list(meanings)
    table = np.full(max([256, *(value + 1 for value, _ in pairs)]), UNDEFINED, dtype=np.int32)
    for value, class_id in pairs:
        table[value] = class_id
    return table


def _rows(path: Path) -> Iterator[list[str]]:
    for line in split_lines(read_text(path)):
        if line.strip() and not line.startswith("#"):
            yield [column.strip() for column in line.split("\t")]
