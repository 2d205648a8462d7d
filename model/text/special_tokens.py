"""Names of the special tokens, and text as a sequence of plain pieces and special tokens.

A piece of text is either plain (`str`) or one special token (`Special`). Only the code of this package creates
`Special` pieces, so "[SEG]" or "<image>" in a class name or a question is encoded as ordinary characters.
"""

from __future__ import annotations

from collections.abc import Iterable

from model.errors import UserError

IMAGE = "<image>"
IM_START = "<im_start>"
IM_END = "<im_end>"
SEG = "[SEG]"
NEG = "[NEG]"

# The vocabulary of the published LaSagnA-7B weights.
INS = "<ins>"
NO_INS = "<no_ins>"
SEMANTIC = "<semantic>"
CAT_START = "<cat_start>"
CAT_END = "<cat_end>"

SEG_TOKENS = frozenset({SEG, INS})
CHOICE_TOKENS = frozenset({SEG, NEG, INS, NO_INS})


class Special(str):
    """A piece of text that is exactly one special token of the tokenizer."""

    __slots__ = ()


Text = tuple["str | Special", ...]


def check_encodable(text: str) -> None:
    """UserError for half of a character, as a wrong byte on a command line becomes: no tokenizer takes it."""
    try:
        text.encode()
    except UnicodeEncodeError as problem:
        half = ascii(text[problem.start])
        raise UserError(
            f"{half} at position {problem.start} of a text is half of a character; write it in UTF-8"
        ) from None


def as_text(text: str | Iterable[str]) -> Text:
    """A `Text` from one string or from pieces."""
    return (text,) if isinstance(text, str) else tuple(text)
