"""Choosing the next token: the most probable one, or one drawn from the model's distribution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

from model.errors import UserError

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.01, 100.0
MAX_SEED = 2**63 - 1


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How an answer in words is chosen, token by token. The default is greedy: always the most probable token."""

    temperature: float = 0.0  # 0: greedy; 1: the model's distribution; above: flatter
    top_p: float = 1.0  # drawn among the most probable tokens that together have this probability
    seed: int = 0  # of the draws; with 0 temperature nothing is drawn

    def __post_init__(self) -> None:
        if not (self.temperature == 0 or MIN_TEMPERATURE <= self.temperature <= MAX_TEMPERATURE):
            raise UserError(
                f"temperature must be 0, which is greedy, or in {MIN_TEMPERATURE} to {MAX_TEMPERATURE}, "
                f"got {self.temperature}"
            )
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p must be above 0 and at most 1, got {self.top_p}; 1 leaves no token out")
        if not 0 <= self.seed <= MAX_SEED:
            raise UserError(f"seed must be in 0 to {MAX_SEED}, got {self.seed}")

    @property
    def is_greedy(self) -> bool:
        """Whether nothing is drawn."""
        return self.temperature == 0


GREEDY = Sampling()


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
