"""Text on a terminal: wrapped between words, also while it comes; as it is for a program that reads it."""

from __future__ import annotations

import io
import shutil
import sys
from typing import TextIO

from rich.cells import cell_len

from utils.common.terminal import printable


class Writer:
    """Writes text that comes in parts; on a terminal each word when it is complete, on a line with room for it."""

    def __init__(self, out: TextIO, width: int | None, indent: str = "") -> None:
        """`width`: columns of the terminal; None where `out` is none. `indent`: before all lines but the first."""
        self.out = out
        self.width = width
        self.indent = indent
        self.column = 0
        self.gap = ""  # spaces that are written if a word follows on the line
        self.word = ""

    def add(self, text: str) -> None:
        """Write a part of the text, control characters made visible."""
        text = printable(text)
        if self.width is None:
            self.out.write(text)
        else:
            for letter in text:
                self._add_letter(letter)
        self.out.flush()

    def end(self) -> None:
        """End the text with a line end."""
        self._write_word()
        self.out.write("\n")
        self.out.flush()
        self.column, self.gap = 0, ""

    def _add_letter(self, letter: str) -> None:
        if not letter.isspace():
            self.word += letter
            return
        self._write_word()
        if letter == "\n":
            self.out.write("\n")
            self.column, self.gap = 0, ""
        else:
            self.gap += " "

    def _write_word(self) -> None:
        if not self.word:
            return
        assert self.width is not None
        room = self.width - self.column
        if self.column and cell_len(self.gap + self.word) > room:
            self.out.write(f"\n{self.indent}")
            self.column, self.gap = len(self.indent), ""
        self.out.write(self.gap + self.word)
        self.column += cell_len(self.gap + self.word)
        self.gap = self.word = ""


def terminal_width(out: TextIO) -> int | None:
    """Columns of the terminal that `out` is; None if it is none."""
    return shutil.get_terminal_size().columns if out.isatty() else None


def writer(out: TextIO | None = None) -> Writer:
    """A writer to standard output, as wide as it is."""
    out = sys.stdout if out is None else out
    return Writer(out, terminal_width(out))


def wrapped(text: str, indent: str = "") -> str:
    """The text, wrapped between words if standard output is a terminal; `indent`: before all lines but the first."""
    whole = io.StringIO()
    lines = Writer(whole, terminal_width(sys.stdout), indent)
    lines.add(text)
    lines.end()
    return whole.getvalue().rstrip("\n")
