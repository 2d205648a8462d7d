"""Two plain ways to the answer of one complex query, to measure decoding in passes against.

The released recipe's: for every token the image is encoded and the whole text is read again. And the strong one: the
prompt is read once, then one token at a time on top of the cached keys and values. Both are greedy under the
constraint of the format, as ours is, so all three give the same choices: at each name the larger of two logits, the
rest of the text forced. The logits of the whole vocabulary are computed for every token, as a free answer needs them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from model.lasagna import LasagnaForConditionalGeneration
from model.processor import LasagnaProcessor


@dataclass(frozen=True, kw_only=True)
class PlainChoices:
    """Of the tokens that were written."""

    present: list[bool]  # for each class whose choice was reached
    states: list[Tensor]  # (hidden_dim,) for each of them that is present: the prompt of its mask


class PlainAnswer:
    """One image and one complex query. Batch of one, as the released code answers."""

    def __init__(
        self,
        model: LasagnaForConditionalGeneration,
        processor: LasagnaProcessor,
        image: np.ndarray,
        classes: Sequence[str],
    ) -> None:
        self.model, self.ids = model, processor.token_ids
        conversation, self.plan = processor.plan(classes)
        inputs = processor.collate([image], [conversation], [0]).to(model.device)
        self.prompt, self.clip_images = inputs.input_ids, inputs.clip_images

    @property
    def num_tokens(self) -> int:
        """Of the answer, to its last choice."""
        return len(self.plan.token_ids)

    @torch.no_grad()
    def without_cache(self, num_tokens: int | None = None) -> PlainChoices:
        """Image and text from the beginning for each token; the first `num_tokens` of the answer, else all."""
        found, text = PlainChoices(present=[], states=[]), self.prompt
        for position in range(self.num_tokens if num_tokens is None else num_tokens):
            state = self.read(text)
            text = torch.cat([text, self._next(position, state, found)], dim=1)
        return found

    @torch.no_grad()
    def read(self, text: Tensor) -> Tensor:
        """(1, T) the prompt and what has been written -> (hidden_dim,) the state that decides what comes next."""
        embeddings = self.model.embed(text, self.model.image_features(self.clip_images))
        return self.model.language_states(embeddings, torch.ones_like(text))[0, -1]

    @torch.no_grad()
    def with_cache(self, num_tokens: int | None = None) -> PlainChoices:
        """One token at a time on top of what is cached; the first `num_tokens` of the answer, else all."""
        found, cache = PlainChoices(present=[], states=[]), DynamicCache()
        step = self.model.embed(self.prompt, self.model.image_features(self.clip_images))
        mask = torch.ones_like(self.prompt)
        for position in range(self.num_tokens if num_tokens is None else num_tokens):
            state = self.model.language_states(step, mask, cache=cache)[0, -1]
            token = self._next(position, state, found)
            step, mask = self.model.embed(token), torch.cat([mask, torch.ones_like(token)], dim=1)
        return found

    def _next(self, position: int, state: Tensor, found: PlainChoices) -> Tensor:
        """(1, 1) the token of the answer at `position`, where `state` decides."""
        logits = self.model.text_logits(state)
        token = self.plan.token_ids[position]
        if position in self.plan.positions:
            is_present = bool(logits[self.ids.seg] >= logits[self.ids.neg])
            token = self.ids.seg if is_present else self.ids.neg
            found.present.append(is_present)
            if is_present:
                found.states.append(state)
        return torch.tensor([[token]], device=self.prompt.device)
