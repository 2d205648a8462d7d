"""The page that --help prints, in 80 columns: what a script does, then its settings, with the defaults."""

from __future__ import annotations

import argparse
import inspect
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby

WIDTH = 80
INDENT, TEXT_COLUMN = 2, 28  # where flags and their meaning begin
METAVARS: dict[object, str] = {int: "INT", float: "FLOAT"}  # of small commands


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


class PageFormatter(argparse.HelpFormatter):
    """--help of a small command: the docstring of its module, and flags with their defaults."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=TEXT_COLUMN, width=WIDTH - 2)  # the usage needs some more

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        return METAVARS.get(action.type) or super()._get_default_metavar_for_optional(action)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return in_columns(text)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text, default = action.help or "", action.default
        if default is None or default is False or default in ("", [], argparse.SUPPRESS) or "default" in text:
            return text
        shown = " ".join(map(str, default)) if isinstance(default, list | tuple) else str(default)
        if len(shown) > WIDTH - TEXT_COLUMN:
            shown = shown.replace(",", ", ")
        return f"{text} (default: {shown.replace('%', '%%')})"


def in_columns(about: str) -> str:
    """A docstring in 80 columns: prose is wrapped; comments go above their commands where these are too long."""
    return "\n\n".join(_paragraph(text) for text in inspect.cleandoc(about).split("\n\n"))


def _paragraph(text: str) -> str:
    lines = text.splitlines()
    if not all(line.startswith(" ") for line in lines):
        return textwrap.fill(" ".join(lines), WIDTH, break_long_words=False, break_on_hyphens=False)
    if max(map(len, lines)) <= WIDTH:
        return text
    shown = []
    for line in lines:
        command, _, comment = line.partition("  # ")
        indent = line[: len(line) - len(line.lstrip())] + "# "
        shown += textwrap.wrap(comment, WIDTH, initial_indent=indent, subsequent_indent=indent)
        shown.append(command.rstrip())
    return "\n".join(shown)
