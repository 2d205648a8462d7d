"""What a protocol is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from utils.evaluation.prompting import EvaluationSettings
from utils.reports.visualize import SheetRow

Sections = dict[str, dict[str, float]]


class Protocol(ABC):
    """One task. `predict` needs the model; everything else is counting."""

    task: ClassVar[str]

    def __init__(self, settings: EvaluationSettings) -> None:
        self.settings = settings

    @abstractmethod
    def predict(self, model: Any, processor: Any, samples: Sequence[Any]) -> list[Any]:
        """A prediction for each sample."""

    @abstractmethod
    def record(self, sample: Any, prediction: Any) -> Any:
        """What the numbers need of it: small, and picklable."""

    @abstractmethod
    def sections(self, records: Sequence[Any]) -> Sections:
        """The numbers of all records, in the order of the samples."""

    @abstractmethod
    def score(self, record: Any) -> float:
        """How good one sample is, 0 to 1, to find the best and the worst; NaN where nothing is judged."""

    def notes(self, records: Sequence[Any]) -> tuple[str, ...]:
        """A sentence for each part of the data that the numbers leave out, and why."""
        return ()

    def class_table(self, records: Sequence[Any]) -> dict[str, dict[str, float]]:
        """Everything that is counted by class, where there are classes: class -> column -> value."""
        return {}

    def confusion(self, records: Sequence[Any]) -> np.ndarray | None:
        """Pixels by true and predicted class, as `ConfusionMatrix.counts`, where there are classes."""
        return None

    def picture(self, sample: Any, prediction: Any) -> SheetRow | None:
        """The sample as a row of a sheet, where there is something to see."""
        return None
