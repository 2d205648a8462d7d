"""What every task provides."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Generic, TypeVar

import numpy as np

from model.processor import LasagnaProcessor
from utils.evaluation.model import SegmentationModel
from utils.evaluation.prompting import EvaluationSettings
from utils.reports.sheet import SheetRow

Sections = dict[str, dict[str, float]]

SampleT = TypeVar("SampleT")  # an EvalSample
PredictionT = TypeVar("PredictionT")  # what the model answered to a sample
RecordT = TypeVar(
    "RecordT"
)  # what the numbers need of both; see RECORD_KINDS in utils/evaluation/serialization.py


class TaskProtocol(ABC, Generic[SampleT, PredictionT, RecordT]):
    """How one task is asked and judged. `predict` needs the model; everything else is counting."""

    task: ClassVar[str]

    def __init__(self, settings: EvaluationSettings) -> None:
        self.settings = settings

    @abstractmethod
    def predict(
        self, model: SegmentationModel, processor: LasagnaProcessor, samples: Sequence[SampleT]
    ) -> list[PredictionT]:
        """A prediction for each sample."""

    @abstractmethod
    def record(self, sample: SampleT, prediction: PredictionT) -> RecordT:
        """What the numbers need of a sample: small, and serializable."""

    @abstractmethod
    def sections(self, records: Sequence[RecordT]) -> Sections:
        """The numbers of all records, in the order of the samples."""

    @abstractmethod
    def score(self, record: RecordT) -> float:
        """How good one sample is, 0 to 1, to rank the samples; NaN where nothing is judged."""

    def notes(self, records: Sequence[RecordT]) -> tuple[str, ...]:
        """A sentence for each part of the data that the numbers leave out, and why."""
        return ()

    def class_table(self, records: Sequence[RecordT]) -> dict[str, dict[str, float]]:
        """Everything that is counted by class, where there are classes: class -> column -> value."""
        return {}

    def confusion(self, records: Sequence[RecordT]) -> np.ndarray | None:
        """Pixels by true and predicted class, as `ConfusionMatrix.counts`, where there are classes."""
        return None

    def row(self, sample: SampleT, prediction: PredictionT) -> SheetRow | None:
        """The sample as a row of a sheet, where there is something to see."""
        return None
