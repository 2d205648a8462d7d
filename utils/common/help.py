"""The page that --help prints: what a script does, then its settings in groups, in 80 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby

WIDTH = 80
INDENT, TEXT_COLUMN = 2, 28  # where flags and their meaning begin


@dataclass(frozen=True, kw_only=True)
class HelpEntry:
    """One setting: how its flag is written, what it means, and the group that it stands in."""

    flag: str
    text: str
    group: str


def help_page(about: str, entries: Iterable[HelpEntry]) -> str:
    """`about`, which is printed as it stands, and a paragraph for each group, in the order of first appearance."""
    entries = list(entries)
    order = list(dict.fromkeys(entry.group for entry in entries))
    paragraphs = [about.strip()]
    for group, members in groupby(
        sorted(entries, key=lambda one: order.index(one.group)), lambda one: one.group
    ):
        paragraphs.append("\n".join([f"{group}:", *(line for one in members for line in _lines(one))]))
    return "\n\n".join(paragraphs) + "\n"


def _lines(entry: HelpEntry) -> list[str]:
    """The flag with its meaning beside it; below it where the flag is too long."""
    flag = " " * INDENT + entry.flag
    # Values such as "a||b" and "q_proj,v_proj" stay whole.
    text = textwrap.wrap(entry.text, WIDTH - TEXT_COLUMN, break_long_words=False, break_on_hyphens=False)
    beside = len(flag) + 2 <= TEXT_COLUMN and text
    first = [flag.ljust(TEXT_COLUMN) + text.pop(0)] if beside else [flag]
    return first + [" " * TEXT_COLUMN + line for line in text]
