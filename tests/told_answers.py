"""Answers that a test chooses: in the form of a real model's, and said by a real model."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from model.lasagna import LasagnaForConditionalGeneration
from model.outputs import ChatAnswer
from model.text.format import SequenceFormat
from model.text.tokens import encode_text


def answer_of(text: str, masks: Tensor, format: SequenceFormat | None = None) -> ChatAnswer:
    """An answer whose tokens are written by their names; without their ids."""
    format = format or SequenceFormat.named("paper")
    return ChatAnswer(text=text, masks=masks, token_ids=[], mentions=tuple(format.parse(text)))


def speaker(
    model: LasagnaForConditionalGeneration, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., LasagnaForConditionalGeneration]:
    """A function of pieces of text and special tokens: from then on the model answers every question with them."""

    def say(*pieces: str) -> LasagnaForConditionalGeneration:
        processor, size = model.processor, model.config.image_token_id
        ids = [*encode_text(processor.tokenizer, pieces), processor.token_ids.eos]
        answer = iter(())

        def scripted(states: Tensor) -> Tensor:
            nonlocal answer
            token = next(answer, None)
            if token is None:
                answer = iter(ids)
                token = next(answer)
            return torch.nn.functional.one_hot(torch.full(states.shape[:-1], token), size).float()

        monkeypatch.setattr(model, "text_logits", scripted)
        return model

    return say
