"""Two plain ways to answer one complex query, to compare decoding in passes with.

The released recipe's: image and whole text are run again for every token. And the strong baseline: the prompt is run
once, then one token at a time with cached keys and values. Both are greedy under the constraint of the format, as
ours is, so all three make the same choices: at each name the larger of two logits, the rest of the text forced.
Logits of the whole vocabulary are computed for every token, as in free generation.
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
    """The choices of the tokens generated so far."""

    present: list[bool]  # for each class that was reached
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
        self.prompt, self.vlm_images = inputs.input_ids, inputs.vlm_images

    @property
    def num_tokens(self) -> int:
        """Tokens of the answer up to its last choice."""
        return len(self.plan.token_ids)

    @torch.no_grad()
    def without_cache(self, num_tokens: int | None = None) -> PlainChoices:
        """The whole sequence again for each token; the first `num_tokens` of the answer, else all."""
        found, text = PlainChoices(present=[], states=[]), self.prompt
        for position in range(self.num_tokens if num_tokens is None else num_tokens):
            state = self.read(text)
            text = torch.cat([text, self._next(position, state, found)], dim=1)
        return found

    @torch.no_grad()
    def read(self, text: Tensor) -> Tensor:
        """(1, T) the prompt and the tokens so far -> (hidden_dim,) the hidden state that predicts the next one."""
        embeddings = self.model.embed(text, self.model.image_features(self.vlm_images))
        return self.model.language_states(embeddings, torch.ones_like(text))[0, -1]

    @torch.no_grad()
    def with_cache(self, num_tokens: int | None = None) -> PlainChoices:
        """One token at a time with cached keys and values; the first `num_tokens` of the answer, else all."""
        found, cache = PlainChoices(present=[], states=[]), DynamicCache()
        step = self.model.embed(self.prompt, self.model.image_features(self.vlm_images))
        mask = torch.ones_like(self.prompt)
        for position in range(self.num_tokens if num_tokens is None else num_tokens):
            state = self.model.language_states(step, mask, cache=cache)[0, -1]
            token = self._next(position, state, found)
            step, mask = self.model.embed(token), torch.cat([mask, torch.ones_like(token)], dim=1)
        return found

    def _next(self, position: int, state: Tensor, found: PlainChoices) -> Tensor:
        """(1, 1) the token of the answer at `position`; at a choice, `state` decides."""
        logits = self.model.text_logits(state)
        token = self.plan.token_ids[position]
        if position in self.plan.positions:
            is_present = bool(logits[self.ids.seg] >= logits[self.ids.neg])
            token = self.ids.seg if is_present else self.ids.neg
            found.present.append(is_present)
            if is_present:
                found.states.append(state)
        return torch.tensor([[token]], device=self.prompt.device)
