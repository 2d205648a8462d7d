"""Choosing the next token: the most probable one, or one drawn from the model's distribution."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

from model.generation.sampling import Sampling


class TokenChooser:
    """The next token of each row, by transformers' logits processors.

    Every row draws from a generator of its own, so its answer does not depend on the rows beside it.
    """

    def __init__(self, samplings: Sequence[Sampling], device: torch.device) -> None:
        self.samplings = list(samplings)
        self.generators = [torch.Generator(device).manual_seed(one.seed) for one in self.samplings]
        self.processors = [self._processors(one) for one in self.samplings]

    def __call__(self, rows: Sequence[int], logits: Tensor) -> Tensor:
        """(len(rows),) token ids from logits (len(rows), vocabulary); `rows` are those still being answered."""
        tokens = logits.argmax(-1)
        for place, row in enumerate(rows):
            if not self.samplings[row].is_greedy:
                scores = self.processors[row](None, logits[place : place + 1].float())
                drawn = torch.multinomial(scores.softmax(-1), 1, generator=self.generators[row])
                tokens[place] = drawn[0, 0]
        return tokens

    @staticmethod
    def _processors(sampling: Sampling) -> LogitsProcessorList:
        processors = LogitsProcessorList()
        if not sampling.is_greedy:
            processors.append(TemperatureLogitsWarper(float(sampling.temperature)))
        if sampling.top_p < 1:
            processors.append(TopPLogitsWarper(sampling.top_p))
        return processors
