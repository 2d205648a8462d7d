"""How far a training run is: what a checkpoint stores besides weights and optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from model.errors import UserError
from utils.data.counts import DataCounts


@dataclass(frozen=True, kw_only=True)
class Score:
    """The number of a validation that decides which weights are the best."""

    value: float
    measured: str  # the data set, the metric, the number of samples: only equal ones can be compared


@dataclass(frozen=True, kw_only=True)
class Validated:
    """Up to which step the epochs of a run are validated, and which of them is the best."""

    step: int = 0
    best_step: int | None = None  # None: none of them has a number
    best_score: float | None = None
    best_measured: str | None = None  # `Score.measured` of the best; an older run may not have noted it

    @classmethod
    def from_dict(cls, noted: Mapping[str, Any]) -> Validated:
        """As it was noted in a file. UserError for other entries, and for values of other types."""
        kinds = {"step": int, "best_step": int, "best_score": int | float, "best_measured": str}
        for name, value in noted.items():
            is_missing = value is None and name != "step"
            if (
                name not in kinds
                or isinstance(value, bool)
                or not (is_missing or isinstance(value, kinds[name]))
            ):
                raise UserError(f"{name} is {value!r}, which it cannot be")
        return cls(**noted)

    def measures_otherwise(self, score: Score) -> bool:
        """Whether the best score so far is that of another measurement, which says nothing about this one."""
        return self.best_score is not None and self.best_measured != score.measured

    def is_beaten_by(self, score: Score) -> bool:
        """Whether the weights with this score become the best ones."""
        if self.best_score is None or self.measures_otherwise(score):
            return True
        return score.value > self.best_score


@dataclass(kw_only=True)
class BadSteps:
    """Steps that were skipped because their loss or gradient was not finite."""

    total: int = 0  # of the run, over all its starts
    in_row: int = 0  # up to now

    def note(self, applied: bool) -> None:
        """Count a step that was applied, or skipped."""
        self.total += not applied
        self.in_row = 0 if applied else self.in_row + 1


@dataclass(kw_only=True)
class Progress:
    """Where a run stands; the training loop moves it on."""

    step: int = 0  # optimizer steps done
    samples: int = 0  # samples of the mixture used by them, so the number of the next one
    validated: Validated = field(default_factory=Validated)
    counts: DataCounts = field(default_factory=DataCounts)
    bad: BadSteps = field(default_factory=BadSteps)
    owes_save: bool = False  # a save is due, and waits for a step that is not skipped
    owes_validation: bool = False  # an epoch has ended that is not validated yet
