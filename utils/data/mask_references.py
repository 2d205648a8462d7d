"""References to masks in the texts of LISA++: parsing them, and writing answers with SEG in their place.

    A cup <12|cup> on the table.        A cup [SEG] on the table.
    Look at <12|cup>.                   Look at cup [SEG].
    《12|cup》, pizza <12>               with other brackets; without a label, which the text then has
    [<12|cup>, <13|cup>]                cup [SEG], cup [SEG]; also [cup <12>, cup <13>] and [12|cup, 13|cup]

A label is written before its mask unless the text before it says the same: it ends in that label, or in a word to
which the reference is attached ("a man<12|person>"). The labels of a list are always written.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass

from utils.data.coco_file import id_of

MARK = re.compile(r"<\s*([0-9]+)\s*(?:\|([^<>]*))?>|《\s*([0-9]+)\s*(?:\|([^《》]*))?》")
BRACKETS = re.compile(r"\[([^\[\]]*)\]")
BARE = re.compile(r"\s*([0-9]+)\s*\|([^|]*)")  # "12|cup", only in lists
COMMAS = ",;\u3001\uff0c"  # Chinese ones as well
SEPARATORS = f" \t\r\n{COMMAS}"
SENTENCE = re.compile(r"[.:!?]")  # what no label has
OPENING = "([{\"'\u201c\u2018-/"  # no space follows these
CLOSING = ".,;:!?)]}"  # no space precedes these

Id = int | str


@dataclass(frozen=True)
class Reference:
    """One mask that a text refers to."""

    id: Id
    label: str  # to be written before the mask; "" if the text has it


@dataclass(frozen=True)
class References:
    """A reference, or a list of them."""

    all: tuple[Reference, ...]


Pieces = tuple[str | References, ...]


def parse_references(text: str) -> Pieces:
    """A text as plain pieces and references."""
    pieces: list[str | References] = []
    place = 0
    for found in BRACKETS.finditer(text):
        if listed := references_in_list(found[1]):
            pieces += [*_single(text[place : found.start()]), References(listed)]
            place = found.end()
    pieces += _single(text[place:])
    return tuple(_without_repetition(pieces))


def ids_in(pieces: Pieces) -> list[Id]:
    """The ids of the masks that are referred to, in order, perhaps some of them several times."""
    return [one.id for piece in pieces if isinstance(piece, References) for one in piece.all]


def references_in_list(content: str) -> tuple[Reference, ...]:
    """The references of what stands in square brackets; none if anything else stands there."""
    if not MARK.search(content):
        bare = [BARE.fullmatch(part) for part in re.split(f"[{COMMAS}]", content)]
        found = [_reference(match[1], match[2]) for match in bare if match]
        return tuple(found) if len(found) == len(bare) else ()
    references = []
    place = 0
    for mark in MARK.finditer(content):
        words = content[place : mark.start()].strip(SEPARATORS).removeprefix("and ")
        if SENTENCE.search(words):
            return ()
        references.append(_of_mark(mark, "" if words == "and" else words))
        place = mark.end()
    return () if content[place:].strip(SEPARATORS) else tuple(references)


def write_answer(pieces: Pieces, usable: Container[Id]) -> tuple[list[str], list[Id]]:
    """The texts before, between and after the masks of an answer, and the ids of these masks.

    References to masks that are not `usable` are written as their labels; of a list, only if none of it is usable.
    """
    parts: list[str] = [""]
    ids: list[Id] = []
    for piece in pieces:
        if isinstance(piece, str):
            parts[-1] = _continued(parts[-1], piece, after_mask=bool(ids) and not parts[-1])
            continue
        found = [one for one in piece.all if one.id in usable]
        if not found:
            parts[-1] = _spaced(parts[-1], ", ".join(dict.fromkeys(one.label for one in piece.all)))
        for number, one in enumerate(found):
            if number:
                parts[-1] = ", "
            elif ids and not parts[-1]:  # right after another mask
                parts[-1] = " "
            parts[-1] = _spaced(_spaced(parts[-1], one.label), " ")
            parts.append("")
            ids.append(one.id)
    return parts, ids


def _single(text: str) -> Iterator[str | References]:
    place = 0
    for mark in MARK.finditer(text):
        if before := text[place : mark.start()]:
            yield before
        yield References((_of_mark(mark),))
        place = mark.end()
    if text[place:]:
        yield text[place:]


def _of_mark(mark: re.Match[str], words: str = "") -> Reference:
    return _reference(mark[1] or mark[3], words or mark[2] or mark[4] or "")


def _reference(written: str, label: str) -> Reference:
    return Reference(id_of(written), " ".join(label.split()))


def _without_repetition(pieces: Iterable[str | References]) -> Iterator[str | References]:
    """The pieces without the label of a single reference where the text before it has one."""
    before = ""
    for piece in pieces:
        if isinstance(piece, str):
            before = piece
            yield piece
            continue
        if len(piece.all) == 1 and _is_named(before, piece.all[0].label):
            yield References((Reference(piece.all[0].id, ""),))
        else:
            yield piece
        before = ""


def _is_named(before: str, label: str) -> bool:
    """Whether the text before a reference names what it refers to."""
    if before[-1:].isalnum():
        return True
    words, name = " ".join(before.split()).casefold(), label.casefold()
    return bool(name) and any(
        words == form or (words.endswith(form) and not words[-len(form) - 1].isalnum())
        for form in (name, f"{name}s", f"{name}es")
    )


def _spaced(before: str, text: str) -> str:
    """A word, or a space, after a text, with one space between the two."""
    if not before or not text or before[-1].isspace() or before[-1] in OPENING:
        return before + text.lstrip()
    return f"{before} {text.lstrip()}"


def _continued(before: str, text: str, *, after_mask: bool) -> str:
    """The text that follows a reference in the file."""
    if text[0].isalnum() and (after_mask or before[-1:].isalnum()):
        return f"{before} {text}"
    if before.endswith(" ") and (text[0].isspace() or text[0] in CLOSING):
        before = before.rstrip(" ")  # nothing was written for the reference
    return before + text
