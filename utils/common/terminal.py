"""Untrusted text on a terminal: control characters are escaped."""

from __future__ import annotations

import logging
import re
from typing import Any

import rich.text

# Control characters but for tab and line feed, halves of characters, what ends lines or turns their direction.
COMMANDS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    r"""The text with control characters as Python writes them: a class called "\x1b[2J" does not clear the screen."""
    return COMMANDS.sub(lambda found: ascii(found[0])[1:-1], text)


class PrintableFormatter(logging.Formatter):
    """Log messages name files and classes, which come from anywhere."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return printable(super().formatMessage(record))


class PrintableText(rich.text.Text):
    """rich's Text, of `printable` text."""

    def __init__(self, text: str = "", *args: Any, **options: Any) -> None:
        super().__init__(printable(text), *args, **options)

    def append(self, text: rich.text.Text | str, style: Any = None) -> PrintableText:
        super().append(printable(text) if isinstance(text, str) else text, style)
        return self
