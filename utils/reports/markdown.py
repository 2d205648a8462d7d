"""Text of unknown origin in a Markdown page: names of classes, files and models are shown, and never markup."""

from __future__ import annotations

import re

from utils.common.terminal import printable

ENTITIES = {"&": "&amp;", "<": "&lt;"}
PLAIN = re.compile(r"[^`<\n]*")  # what may stand in a span of code as it is


def escaped(text: str) -> str:
    """Text as it is written, on one line: no HTML, link, image, emphasis, code or end of a table's cell."""
    text = re.sub(r"[\\`*\[\]|]", r"\\\g<0>", " ".join(printable(text).split()))
    return re.sub("[&<]", lambda found: ENTITIES[found[0]], text)


def code(text: str) -> str:
    """Text as a span of code, or escaped where it would end the span."""
    text = printable(text)
    return f"`{text}`" if PLAIN.fullmatch(text) and text.strip() else escaped(text)
