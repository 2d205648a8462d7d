"""Conversations about one image: alternating turns of user and assistant.

The image is no part of a turn's text: prompt templates (model/text/templates.py) put it before the first user text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from model.text.special_tokens import CHOICE_TOKENS, SEG_TOKENS, Special, Text, as_text


@dataclass(frozen=True)
class Turn:
    """One message of the user or the assistant."""

    role: Literal["user", "assistant"]
    text: Text
    # Of a generated answer: its tokens, for `encode_as_generated`.
    token_ids: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", as_text(self.text))
        if self.role not in ("user", "assistant"):
            raise ValueError(f"role must be 'user' or 'assistant', got {self.role!r}")
        if self.role == "user" and any(isinstance(p, Special) and p in CHOICE_TOKENS for p in self.text):
            raise ValueError(f"a user turn cannot contain a segmentation token: {self.text}")

    def __str__(self) -> str:
        return "".join(self.text)


@dataclass(frozen=True)
class Conversation:
    """Alternating turns of user and assistant. A conversation that ends with the user is a prompt to be answered."""

    turns: tuple[Turn, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "turns", tuple(self.turns))
        roles = [turn.role for turn in self.turns]
        expected = ["user" if i % 2 == 0 else "assistant" for i in range(len(roles))]
        if not roles or roles != expected:
            raise ValueError(f"turns must alternate user, assistant, ... and start with user, got {roles}")

    @classmethod
    def of(cls, *texts: str | Text) -> Conversation:
        """A conversation from texts of user, assistant, user, ..."""
        return cls(
            tuple(Turn("user" if i % 2 == 0 else "assistant", as_text(text)) for i, text in enumerate(texts))
        )

    @property
    def num_seg(self) -> int:
        """Number of masks: one for each SEG token of the assistant's turns."""
        return sum(isinstance(piece, Special) and piece in SEG_TOKENS for t in self.turns for piece in t.text)

    @property
    def answers(self) -> tuple[str, ...]:
        """The text of each assistant turn."""
        return tuple(str(turn) for turn in self.turns if turn.role == "assistant")

    @property
    def prompt(self) -> Conversation:
        """The conversation without the final answer, if there is one."""
        return Conversation(self.turns[:-1]) if self.turns[-1].role == "assistant" else self
