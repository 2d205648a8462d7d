"""Settings of how the next token is chosen: the most probable one, or one drawn from the model's distribution."""

from __future__ import annotations

from dataclasses import dataclass

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
