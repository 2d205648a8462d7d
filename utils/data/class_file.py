"""Class files of users: line n, counted from 0, names the class of label value n.

The classes.txt of own data and `test_sem.py --classes FILE` are read here. A line may give a second name after a tab,
to be used in questions and answers: `bldg<TAB>building`. These words, in upper or lower case, are not classes:

    ignore         pixels of this value are left out of training and evaluation
    nothing        pixels of this value belong to none of the classes
    _background_   labelme's word for `nothing`
    __ignore__     in line 1 only, as in labelme's labels.txt: line 1 is value -1, which labelme stores as 255, and
                   line 2 is value 0
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from model.errors import UserError
from model.files import split_lines
from model.generation.answers import normalize_name
from utils.common.label_values import IGNORE, NOTHING
from utils.data import storage
from utils.data.class_lists import ClassList, check_name, make_id_table

logger = logging.getLogger(__name__)

MEANING_OF_LINE = {"ignore": IGNORE, "nothing": NOTHING, "_background_": NOTHING}
LABELME_IGNORE = "__ignore__"
IGNORED_VALUES = (255, 65535)  # ignored in 8-bit and 16-bit labels unless the file has a line for them
# Normalised names that probably are not classes -> the word to write instead. They get a warning and stay classes.
BACKGROUND_NAMES = {
    **dict.fromkeys(("background", "bg", "nothing", "none", "no class"), "nothing"),
    **dict.fromkeys(
        ("ignore", "ignored", "void", "unlabeled", "unlabelled", "unannotated", "unknown", "undefined", "dontcare",
         "don't care"),
        "ignore",
    ),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ClassFile:
    """The classes of a file, and the meaning of each label value."""

    classes: ClassList
    values: tuple[int, ...]  # label value of each class
    id_table: np.ndarray  # label value -> class index, IGNORE, NOTHING or UNDEFINED, see make_id_table
    first_value: int  # label value of line 1
    num_values: int  # the file has lines for values below this; above it, IGNORED_VALUES are ignored


def read_class_file(path: Path) -> ClassFile:
    """The classes of a text file.

    Raises FileNotFoundError, and UserError naming the line for an empty list, a repeated name, a comment or a blank
    line between names: skipping a line would shift the label values of all lines below it.
    """
    if not storage.is_file(path):
        raise FileNotFoundError(
            f"{path} does not exist; write one class name per line: the first line is label value 0"
        )
    lines = split_lines(storage.read_text(path))
    while lines and not lines[-1].strip():
        del lines[-1]
    first_value = -1 if lines and lines[0].strip().lower() == LABELME_IGNORE else 0
    if first_value:
        logger.info(
            "%s: %s in line 1 is labelme's value -1, stored as 255; line 2 is value 0", path, lines[0]
        )
    names: list[list[str]] = []
    values: list[int] = []
    meanings: list[tuple[int, int]] = []
    for number, line in enumerate(lines[-first_value:], start=1 - first_value):
        value = number - 1 + first_value
        columns = _columns(line, value, f"{path}, line {number}")
        word = columns[0].lower()
        if len(columns) == 1 and word in MEANING_OF_LINE:
            meanings.append((value, MEANING_OF_LINE[word]))
            continue
        meanings.append((value, len(names)))
        values.append(value)
        names.append(columns)
    if not names:
        raise UserError(f"{path}: no classes; write one per line")
    num_values = len(lines) + first_value
    meanings += [(value, IGNORE) for value in IGNORED_VALUES if value >= num_values]
    classes = ClassList([columns[0] for columns in names], [columns[-1] for columns in names], str(path))
    for remark in no_class_remarks(classes):
        logger.warning("%s: %s", path, remark)
    return ClassFile(
        classes=classes,
        values=tuple(values),
        id_table=make_id_table(meanings),
        first_value=first_value,
        num_values=num_values,
    )


def no_class_remarks(names: Sequence[str], cure: str = "write {word!r}") -> list[str]:
    """A remark for each name that probably is not a class, with the cure."""
    return [
        f"{name!r} is asked for like any other class; {cure.format(word=BACKGROUND_NAMES[key])} if it is not one"
        for name in names
        if (key := normalize_name(name).strip()) in BACKGROUND_NAMES
    ]


def _columns(line: str, value: int, where: str) -> list[str]:
    """The columns of a line: a class name, or a class name and the name to use in questions and answers."""
    columns = line.split("\t")
    for column in columns:
        check_name(column, where)
    columns = [column.strip() for column in columns]
    if not all(columns) or line.lstrip().startswith("#"):
        raise UserError(
            f"{where}: {line.strip()!r} names no class for label value {value}; write 'ignore' or 'nothing' for a "
            "value without a class, and no comments"
        )
    words = {*MEANING_OF_LINE, LABELME_IGNORE}
    if len(columns) > 2:
        raise UserError(
            f"{where}: {line!r} has {len(columns)} columns; write a name, or a name, a tab and a spoken name"
        )
    if len(columns) == 2 and words.intersection(column.lower() for column in columns):
        raise UserError(
            f"{where}: {line!r} has a name beside a word that is not a class; write only one of them"
        )
    if columns[0].lower() == LABELME_IGNORE:
        raise UserError(
            f"{where}: {LABELME_IGNORE} has a meaning only in line 1, where labelme writes it; write 'ignore' for "
            f"label value {value}"
        )
    return columns
