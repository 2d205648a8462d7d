"""Answers in words in the form of a real model's, for test models that answer from a table."""

from __future__ import annotations

from torch import Tensor

from model.outputs import ChatAnswer
from model.text.format import SequenceFormat


def answer_of(text: str, masks: Tensor, format: SequenceFormat | None = None) -> ChatAnswer:
    """An answer whose tokens are written by their names; without their ids."""
    format = format or SequenceFormat.named("paper")
    return ChatAnswer(text=text, masks=masks, token_ids=[], mentions=tuple(format.parse(text)))
