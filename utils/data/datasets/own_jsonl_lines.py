"""The lines of an own_jsonl file: parsed, and checked for what a person writes wrongly."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.downloads import check_download
from model.errors import UserError
from model.files import decode_text, split_lines
from model.text.special_tokens import NEG, SEG
from utils.data.datasets.llava_instruct import dialogue_texts
from utils.data.files import parse_fast, parse_json
from utils.data.frames import Drawn
from utils.data.index.sources import read_source

KEYS = ("image", "conversations", "masks")
NEAR_MARK = re.compile(r"[\[<(] *(?:seg|neg) *[\])>]", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of the file."""

    number: int  # from 1
    image: str  # file name as written
    texts: tuple[str, ...]  # human and gpt in alternation
    masks: tuple[Any, ...]  # one per [SEG]
    path: Path = Path()  # the image file
    size: tuple[int, int] | None = (
        None  # (height, width) of the image by the run-length codes of all its lines
    )

    @property
    def near_mark(self) -> str:
        """The first mark in an answer that is nearly [SEG] or [NEG], such as "[seg]"; "" if there is none."""
        found = (match[0] for text in self.texts[1::2] for match in NEAR_MARK.finditer(text))
        return next((mark for mark in found if mark not in (SEG, NEG)), "")

    @property
    def is_question(self) -> bool:
        """Whether it can be evaluated: a single question that is answered with [SEG] or [NEG]."""
        return len(self.texts) == 2 and (SEG in self.texts[1] or NEG in self.texts[1])


def read_lines(path: Path) -> list[Line]:
    """The lines of a jsonl file; UserError with the number of a malformed line."""
    lines = []
    for number, text in enumerate(split_lines(decode_text(read_source(path), path)), start=1):
        if not text.strip():
            continue
        try:
            entry = parse_fast(text)
            lines.append(parse_line(number, parse_json(text) if entry is None else entry))
        except json.JSONDecodeError as problem:
            check_download(path)
            raise UserError(
                f"{path}, line {number}: not JSON ({problem}); write one object on each line, and no list around them"
            ) from None
        except (ValueError, RecursionError) as problem:
            raise UserError(f"{path}, line {number}: {problem}") from None
    return lines


def sizes_told(lines: Sequence[Line]) -> dict[str, tuple[int, int]]:
    """(height, width) of each image by the run-length codes of all its lines, where these agree."""
    told: dict[str, set[tuple[int, int]]] = {}
    for line in lines:
        drawn = Drawn.of(mask for mask in line.masks if not isinstance(mask, str))
        told.setdefault(line.image, set()).update(drawn.sizes)
    return {image: next(iter(sizes)) for image, sizes in told.items() if len(sizes) == 1}


def parse_line(number: int, entry: Any) -> Line:
    """A line from its JSON. Raises UserError for a missing key, or if the numbers of masks and [SEG] differ."""
    if not isinstance(entry, dict):
        raise UserError(f"a line is an object with {', '.join(KEYS)}, got {type(entry).__name__}")
    entry = {"masks": [], **entry}
    for key, kind in zip(KEYS, (str, list, list), strict=True):
        if key not in entry:
            raise UserError(f"no {key!r}; a line has {', '.join(KEYS)}")
        if not isinstance(entry[key], kind):
            raise UserError(f"{key!r} must be a {kind.__name__}, got {type(entry[key]).__name__}")
    try:
        texts = dialogue_texts(entry)
    except Exception as problem:
        if isinstance(problem, ValueError):
            raise
        raise UserError(
            f"a turn of 'conversations' has 'from' and 'value', both text ({type(problem).__name__}: {problem})"
        ) from None
    num_seg = sum(text.count(SEG) for text in texts[1::2])
    if num_seg != len(entry["masks"]):
        raise UserError(
            f"{num_seg} {SEG} in the answers but {len(entry['masks'])} masks; mask k belongs to the k-th {SEG}"
        )
    return Line(number=number, image=entry["image"], texts=texts, masks=tuple(entry["masks"]))
