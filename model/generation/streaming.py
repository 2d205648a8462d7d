"""The text of an answer while it is generated."""

from __future__ import annotations

from collections.abc import Callable

from model.processor import LasagnaProcessor

# Called with the index of a row and its new token; a true answer ends the row.
OnToken = Callable[[int, int], object]


class TextStream:
    """Turns the tokens of one answer into text as they come. The parts add up to the answer's text.

    A letter of several tokens (bytes of UTF-8) is given when it is complete.
    """

    def __init__(self, processor: LasagnaProcessor) -> None:
        self.processor = processor
        self.ids: list[int] = []
        self.text = ""  # given so far

    def add(self, token: int) -> str:
        """The text that this token completes, possibly none."""
        self.ids.append(token)
        return self.rest(self.processor.decode(self.ids).rstrip("\ufffd"))

    def rest(self, text: str) -> str:
        """What `text`, the answer so far or as a whole, has beyond what was given."""
        if not text.startswith(self.text):  # an incomplete letter became another one: wait for the whole
            return ""
        new, self.text = text[len(self.text) :], text
        return new
