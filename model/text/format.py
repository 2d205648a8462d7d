"""Formats of complex queries and their answers, and the training strategies that belong to a format."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from model.errors import UserError
from model.text.phrases import phrases, with_token
from model.text.special_tokens import (
    CAT_END,
    CAT_START,
    INS,
    NEG,
    NO_INS,
    SEG,
    SEMANTIC,
    Special,
    Text,
    check_encodable,
)

DEFAULT_NUM_ALL_CLASSES = 80
NOTHING_FOUND = "None of them is in this image."


@dataclass(frozen=True)
class SequenceFormat:
    """How queries and answers are written, and which of the paper's training strategies were used."""

    name: str
    seg: str
    neg: str | None
    sequence_augmentation: bool = True  # absent classes of a query are answered too, with the NEG token
    order_following: bool = True  # the answer names classes in the order of the query
    random_classes_list: bool = True  # a query names a random subset of the data set's classes

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or self.name not in TOKENS_OF_FORMAT:
            raise UserError(f"unknown format {self.name!r}; known: {', '.join(sorted(TOKENS_OF_FORMAT))}")
        if not isinstance(self.seg, str) or not isinstance(self.neg, str | None):
            raise UserError(
                f"the tokens of a format are texts, got {self.seg!r} and {self.neg!r}; copy the folder again"
            )
        if self.neg is None and self.sequence_augmentation:
            raise UserError(
                f"format {self.name!r} has no token for absent classes; set sequence_augmentation to False"
            )

    @classmethod
    def named(cls, name: str, **switches: bool) -> SequenceFormat:
        """The format `name` ("paper", "release" or "lisa"), with strategies switched as given."""
        if name not in TOKENS_OF_FORMAT:
            raise UserError(f"unknown format {name!r}; known: {', '.join(sorted(TOKENS_OF_FORMAT))}")
        seg, neg = TOKENS_OF_FORMAT[name]
        if neg is None:
            switches = {**switches, "sequence_augmentation": False}
        return cls(name=name, seg=seg, neg=neg, **switches)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a model's config."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> SequenceFormat:
        """The inverse of `to_dict`. Raises a UserError for a stored format with other entries."""
        try:
            return cls(**values)
        except TypeError as problem:
            raise UserError(
                f"no sequence format that was stored: {values!r}; copy the folder again"
            ) from problem

    @property
    def answers_every_class(self) -> bool:
        """Whether the query determines the answer except for SEG or NEG, so that decoding can be constrained."""
        return self.neg is not None and self.sequence_augmentation and self.order_following

    def query(self, classes: Sequence[str]) -> Text:
        """The user's text, for the given class names."""
        names = ", ".join(spoken(name) for name in class_names(classes))
        if self.name == "release":
            listed = (Special(CAT_START), f" {names} ", Special(CAT_END))
            return (Special(SEMANTIC), "Segment this image.", *listed)
        return (f"Can you segment the {names} in this image?",)

    def answer(self, choices: Sequence[tuple[str, bool]]) -> Text:
        """The assistant's text: for each (class name, present?) the name and SEG or NEG."""
        if self.neg is None and not all(present for _, present in choices):
            raise ValueError(
                f"format {self.name!r} cannot say that a class is absent; leave such classes out"
            )
        if not choices:
            return (NOTHING_FOUND,)
        pieces: list[str] = []
        for index, (name, present) in enumerate(choices):
            token = Special(self.seg if present else self.neg)
            if self.name == "release":
                pieces += [spoken(name), token]
            else:
                pieces += [f"{', ' if index else ''}{spoken(name)} ", token]
        return tuple(pieces) if self.name == "release" else (*pieces, ".")

    def mentions(self, text: Text) -> list[tuple[str, bool]]:
        """(name, present?) for each SEG or NEG among the pieces of an answer, in their order.

        The name is the text between the previous such token and this one, without separators, possibly "".
        Plain pieces contain no tokens, even if they spell the name of one.
        """
        found, words = [], ""
        for piece in text:
            if not isinstance(piece, Special):
                words += piece
            elif piece in (self.seg, self.neg):
                found.append((words.strip().lstrip(",.;").strip(), piece == self.seg))
                words = ""
        return found

    def parse(self, text: str) -> list[tuple[str, bool]]:
        """`mentions` of an answer given as one string, in which tokens appear by name.

        Not for generated answers, where plain text may spell a token's name.
        """
        tokens = [token for token in (self.seg, self.neg) if token is not None]
        pieces = re.split(f"({'|'.join(re.escape(token) for token in tokens)})", text)
        return self.mentions(
            tuple(Special(piece) if place % 2 else piece for place, piece in enumerate(pieces))
        )

    def found(self) -> Text:
        """The answer "It is [SEG].", in the fixed wording of teacher-forced evaluation."""
        return with_token(phrases()["target_answer"][0], self.seg)

    def not_found(self) -> Text:
        """The answer "It is not in this image [NEG].", which begins like `found`; without NEG, its words only."""
        return with_token(phrases()["no_target_answer"][0], self.neg)


TOKENS_OF_FORMAT: dict[str, tuple[str, str | None]] = {
    "paper": (SEG, NEG),
    "release": (INS, NO_INS),
    "lisa": (SEG, None),
}


def class_names(classes: Sequence[str]) -> tuple[str, ...]:
    """The class names of one query. Raises ValueError for an empty list, for non-strings, and for a bare string."""
    if isinstance(classes, str):
        raise UserError(f"classes are a list of names, got the string {classes!r}; pass [{classes!r}]")
    names = tuple(classes)
    if not names:
        raise UserError("a query needs at least one class name")
    for name in names:
        if not isinstance(name, str):
            raise UserError(f"a class name is a string, got {name!r}")
        check_encodable(name)
    return names


def spoken(name: str) -> str:
    """A class name as it is written in queries and answers: lower case, single spaces.

    Raises ValueError for a name without any visible character.
    """
    words = " ".join(name.lower().split())
    if not words:
        raise UserError(f"class name {name!r} is empty")
    return words
