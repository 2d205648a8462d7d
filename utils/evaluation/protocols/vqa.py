"""Visual question answering: answers in text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from model.processor import LasagnaProcessor
from utils.data.types import VqaSample
from utils.evaluation.metrics import exact_match, intervals, rouge_l
from utils.evaluation.metrics.bootstrap import whole
from utils.evaluation.metrics.common import known_mean, safe_divide
from utils.evaluation.model import SegmentationModel
from utils.evaluation.prompting import ask_for_text
from utils.evaluation.protocols.base import Sections, TaskProtocol


@dataclass(frozen=True, kw_only=True)
class VqaRecord:
    """One question."""

    exact: bool  # the same text but for case, articles and punctuation
    rouge_l: float


class VqaProtocol(TaskProtocol[VqaSample, str, VqaRecord]):
    """Generated text against the expected one: exact match and ROUGE-L."""

    task = "vqa"

    def predict(
        self, model: SegmentationModel, processor: LasagnaProcessor, samples: Sequence[VqaSample]
    ) -> list[str]:
        queries = [(sample.question,) for sample in samples]
        return ask_for_text(model, processor, [sample.image for sample in samples], queries, self.settings)

    def record(self, sample: VqaSample, prediction: str) -> VqaRecord:
        return VqaRecord(
            exact=exact_match(prediction, sample.answer), rouge_l=rouge_l(prediction, sample.answer)
        )

    def score(self, record: VqaRecord) -> float:
        return record.rouge_l

    def sections(self, records: Sequence[VqaRecord]) -> Sections:
        rows = [(whole(1), whole(record.exact), whole(record.rouge_l)) for record in records]
        sums = np.array(rows, dtype=np.float64).reshape(len(rows), 3)
        scores = {
            "exact_match": float(known_mean(np.array([record.exact for record in records], dtype=float))),
            "rouge_l": float(known_mean(np.array([record.rouge_l for record in records]))),
        }
        return {"vqa": {**scores, **intervals(sums, _measures, seed=self.settings.seed)}}


def _measures(sums: np.ndarray) -> dict[str, np.ndarray]:
    count, exact, rouge = np.moveaxis(sums, -1, 0)
    return {"exact_match": safe_divide(exact, count), "rouge_l": safe_divide(rouge, count)}
