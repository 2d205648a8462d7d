"""Questions about several targets, as in MUSE: one mask for each target."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from model.outputs import SimilarityMaps
from model.processor import LasagnaProcessor
from model.text.sequence import reasoning_query
from utils.data.types import MultiTargetSample
from utils.evaluation.metrics import (
    Overlap,
    intervals,
    mask_scores,
    matched_overlaps,
    multi_measures,
    multi_sums,
)
from utils.evaluation.metrics.common import safe_divide
from utils.evaluation.model import SegmentationModel
from utils.evaluation.prompting import ask_for_masks
from utils.evaluation.protocols.base import Sections, TaskProtocol
from utils.reports.sheet import SheetRow, mask_row


@dataclass(frozen=True, kw_only=True)
class MultiAnswer:
    """What the model answered to one question, compared with its targets."""

    text: str
    mask: np.ndarray  # (height, width) bool, the union of the answer's masks
    overlaps: tuple[Overlap, ...]  # as from `matched_overlaps`
    num_masks: int
    maps: SimilarityMaps | None = None  # one for each mask, of a model with a spatial prompt


@dataclass(frozen=True, kw_only=True)
class MultiRecord:
    """One question."""

    overlaps: tuple[Overlap, ...]
    num_masks: int
    num_targets: int


class MultiTargetProtocol(TaskProtocol[MultiTargetSample, Sequence[MultiAnswer], Sequence[MultiRecord]]):
    """Every question of every image; the masks of an answer are matched to the targets one by one."""

    task = "multi"

    def predict(
        self, model: SegmentationModel, processor: LasagnaProcessor, samples: Sequence[MultiTargetSample]
    ) -> list[Sequence[MultiAnswer]]:
        queries = [[reasoning_query(text, True) for text in sample.questions] for sample in samples]
        images = [sample.image for sample in samples]
        answers = ask_for_masks(model, processor, images, queries, self.settings, with_parts=True)
        # The masks of an answer are compared at once: those of many answers would fill the memory.
        return [
            [
                MultiAnswer(
                    text=answer.text,
                    mask=answer.mask,
                    overlaps=tuple(matched_overlaps(answer.parts, targets)),
                    num_masks=len(answer.parts),
                    maps=answer.maps,
                )
                for answer, targets in zip(of_image, sample.masks, strict=True)
            ]
            for of_image, sample in zip(answers, samples, strict=True)
        ]

    def record(self, sample: MultiTargetSample, prediction: Sequence[MultiAnswer]) -> list[MultiRecord]:
        return [
            MultiRecord(overlaps=answer.overlaps, num_masks=answer.num_masks, num_targets=len(targets))
            for answer, targets in zip(prediction, sample.masks, strict=True)
        ]

    def sections(self, records: Sequence[Sequence[MultiRecord]]) -> Sections:
        sums = np.array([_sums(record) for record in records], dtype=np.float64).reshape(len(records), 6)
        measures = {name: float(value) for name, value in _measures(sums.sum(axis=0)).items()}
        flat = [entry for record in records for entry in record]
        counts = {"num_questions": len(flat), "num_targets": sum(entry.num_targets for entry in flat)}
        return {"multi": {**measures, **intervals(sums, _measures, seed=self.settings.seed), **counts}}

    def score(self, record: Sequence[MultiRecord]) -> float:
        return float(_measures(_sums(record))["giou"])

    def row(self, sample: MultiTargetSample, prediction: Sequence[MultiAnswer]) -> SheetRow:
        number = zlib.crc32(sample.source.encode()) % len(sample.questions)
        answer = prediction[number]
        return mask_row(
            sample.image,
            np.asarray(sample.masks[number].any(axis=0)),
            answer.mask,
            question=sample.questions[number],
            answer=answer.text,
            iou=mask_scores(answer.overlaps)["giou"] if answer.overlaps else math.nan,
        )


def _sums(record: Sequence[MultiRecord]) -> np.ndarray:
    """(6,) of one image: those of `multi_sums`, questions with as many masks as targets, questions."""
    overlaps = [overlap for entry in record for overlap in entry.overlaps]
    num_masks, num_targets = (sum(getattr(e, name) for e in record) for name in ("num_masks", "num_targets"))
    right = sum(entry.num_masks == entry.num_targets for entry in record)
    return np.append(multi_sums(overlaps, num_masks, num_targets), [right, len(record)])


def _measures(sums: np.ndarray) -> dict[str, np.ndarray]:
    return {
        **multi_measures(sums[..., :4]),
        "count_accuracy": safe_divide(sums[..., 4], sums[..., 5]),
    }
