"""One mask for each question: referring, generalized referring and reasoning segmentation."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from model.processor import LasagnaProcessor
from model.text.sequence import reasoning_query, referring_query
from utils.data.types import ReasonSample, ReferringSample
from utils.evaluation.metrics import (
    NO_TARGET_PIXELS,
    Overlap,
    average_precision,
    generalized_measures,
    generalized_scores,
    generalized_sums,
    intervals,
    mask_measures,
    mask_scores,
    mask_sums,
    overlap,
    robust_measures,
    robust_sums,
    roc_auc,
)
from utils.evaluation.metrics.common import safe_divide
from utils.evaluation.model import SegmentationModel
from utils.evaluation.prompting import MaskAnswer, ask_for_masks
from utils.evaluation.protocols.base import Sections, TaskProtocol
from utils.reports.sheet import SheetRow, mask_row


@dataclass(frozen=True, kw_only=True)
class MaskRecord:
    """One expression."""

    overlap: Overlap
    no_target: bool
    reference: int = 0  # which reference the expression is a sentence of, among those of its image
    probability: float | None = None  # that it has a target; None: not measured


class ReferringProtocol(TaskProtocol[ReferringSample, Sequence[MaskAnswer], Sequence[MaskRecord]]):
    """Every expression of every image is counted by itself; the bootstrap draws images."""

    task = "referring"
    asks_probability: ClassVar[bool] = False  # of a target

    def predict(
        self, model: SegmentationModel, processor: LasagnaProcessor, samples: Sequence[ReferringSample]
    ) -> list[Sequence[MaskAnswer]]:
        queries = [
            [(text,) if sample.as_written else referring_query(text) for text in sample.expressions]
            for sample in samples
        ]
        answers = ask_for_masks(
            model, processor, [sample.image for sample in samples], queries, self.settings,
            with_probability=self.asks_probability,
        )  # fmt: skip
        return list(answers)

    def record(self, sample: ReferringSample, prediction: Sequence[MaskAnswer]) -> list[MaskRecord]:
        references = sample.references or range(len(sample.expressions))
        rows = zip(prediction, sample.masks, sample.no_target, references, strict=True)
        return [
            MaskRecord(
                overlap=overlap(answer.mask, mask, sample.ignore),
                no_target=no_target,
                reference=reference,
                probability=answer.probability,
            )
            for answer, mask, no_target, reference in rows
            if is_judged(mask, sample.ignore, no_target=no_target)
        ]

    def sections(self, records: Sequence[Sequence[MaskRecord]]) -> Sections:
        by_image = [[entry.overlap for entry in record] for record in records]
        flat = [each for of_image in by_image for each in of_image]
        bounds = _mask_intervals(by_image, self.settings.seed)
        return {"referring": {**mask_scores(flat), **bounds, "num_expressions": len(flat)}}

    def notes(self, records: Sequence[Sequence[MaskRecord]]) -> tuple[str, ...]:
        hidden = sum(not record for record in records)
        return (f"{hidden} of {len(records)} images have no expression that is judged",) if hidden else ()

    def score(self, record: Sequence[MaskRecord]) -> float:
        """Mean IoU of the image's expressions."""
        return mask_scores(entry.overlap for entry in record)["giou"]

    def row(self, sample: ReferringSample, prediction: Sequence[MaskAnswer]) -> SheetRow:
        # One of the expressions, chosen by a hash of the file name: not always the first, the same in every run.
        number = zlib.crc32(sample.source.encode()) % len(sample.expressions)
        mask = sample.masks[number]
        iou = overlap(prediction[number].mask, mask, sample.ignore).iou
        return mask_row(
            sample.image,
            sample.masks[number],
            prediction[number].mask,
            question=sample.expressions[number],
            answer=prediction[number].text,
            iou=iou if is_judged(mask, sample.ignore, no_target=sample.no_target[number]) else math.nan,
        )


class GeneralizedProtocol(ReferringProtocol):
    """Expressions that may have no target, as in gRefCOCO.

    An empty prediction says "no target"; by the second of two rules a prediction of fewer than 50 pixels does.
    """

    task = "generalized"
    asks_probability = True

    def sections(self, records: Sequence[Sequence[MaskRecord]]) -> Sections:
        """`generalized` and `no_target`; `robust` where references have true and false sentences (R-RefCOCO)."""
        flat = [entry for record in records for entry in record]
        overlaps, no_target = [entry.overlap for entry in flat], [entry.no_target for entry in flat]
        generalized: dict[str, float] = {}
        nothing: dict[str, float] = {}
        for ending, min_pixels in (("", 1), ("_50px", NO_TARGET_PIXELS)):
            scores = generalized_scores(overlaps, no_target, min_pixels=min_pixels)
            generalized |= {f"{name}{ending}": value for name, value in scores.items()}
            nothing[f"accuracy{ending}"] = scores["n_acc"]
        sums = [
            generalized_sums([e.overlap for e in record], [e.no_target for e in record]) for record in records
        ]
        bounds = intervals(
            np.array(sums, dtype=np.float64).reshape(len(sums), 8),
            generalized_measures,
            seed=self.settings.seed,
        )
        targets = mask_measures(mask_sums([entry.overlap for entry in flat if not entry.no_target]))
        generalized |= {f"{name}_target": float(value) for name, value in targets.items()}
        counts = {"num_expressions": len(flat), "num_no_target": sum(no_target)}
        nothing |= {name.replace("n_acc", "accuracy"): bounds[name] for name in bounds if "n_acc" in name}
        nothing |= presence_scores(records, self.settings.seed)
        return {
            "generalized": {**generalized, **bounds, **counts},
            "no_target": {**nothing, **counts},
            **robust_section(records, self.settings.seed),
        }

    def score(self, record: Sequence[MaskRecord]) -> float:
        """As in gIoU: an expression without target scores 1 if nothing was predicted, else 0."""
        return generalized_scores([e.overlap for e in record], [e.no_target for e in record])["giou"]


@dataclass(frozen=True, kw_only=True)
class ReasonRecord:
    """One question."""

    overlap: Overlap
    is_sentence: bool
    is_judged: bool = True  # False where ignored pixels cover the whole target


class ReasoningProtocol(TaskProtocol[ReasonSample, MaskAnswer, ReasonRecord]):
    """One question about each image, ignored pixels left out; phrases and sentences also separately."""

    task = "reasoning"

    def predict(
        self, model: SegmentationModel, processor: LasagnaProcessor, samples: Sequence[ReasonSample]
    ) -> list[MaskAnswer]:
        queries = [[reasoning_query(sample.question, sample.is_sentence)] for sample in samples]
        answers = ask_for_masks(
            model, processor, [sample.image for sample in samples], queries, self.settings
        )
        return [answer for (answer,) in answers]

    def record(self, sample: ReasonSample, prediction: MaskAnswer) -> ReasonRecord:
        counts = overlap(prediction.mask, sample.mask, sample.ignore)
        return ReasonRecord(
            overlap=counts,
            is_sentence=bool(sample.is_sentence),
            is_judged=is_judged(sample.mask, sample.ignore, no_target=not sample.ignore.any()),
        )

    def sections(self, records: Sequence[ReasonRecord]) -> Sections:
        """All questions; also phrases (`short`) and sentences (`long`), where the split has both."""
        judged = [record for record in records if record.is_judged]
        kinds = {
            "reasoning": [r.overlap for r in judged],
            "reasoning_short": [r.overlap for r in judged if not r.is_sentence],
            "reasoning_long": [r.overlap for r in judged if r.is_sentence],
        }
        has_both = kinds["reasoning_short"] and kinds["reasoning_long"]
        return {
            name: {
                **mask_scores(overlaps),
                **_mask_intervals([[each] for each in overlaps], self.settings.seed),
                "num_questions": len(overlaps),
            }
            for name, overlaps in kinds.items()
            if name == "reasoning" or has_both
        }

    def notes(self, records: Sequence[ReasonRecord]) -> tuple[str, ...]:
        hidden = sum(not record.is_judged for record in records)
        return (f"{hidden} of {len(records)} targets are ignored, and not judged",) if hidden else ()

    def score(self, record: ReasonRecord) -> float:
        return record.overlap.iou if record.is_judged else math.nan

    def row(self, sample: ReasonSample, prediction: MaskAnswer) -> SheetRow:
        return mask_row(
            sample.image,
            sample.mask,
            prediction.mask,
            question=sample.question,
            answer=prediction.text,
            iou=self.score(self.record(sample, prediction)),
        )


def presence_scores(records: Sequence[Sequence[MaskRecord]], seed: int) -> dict[str, float]:
    """Whether an expression has a target, as a binary classification; `records` has a sequence for each image.

    see_accuracy: fraction of all expressions that get a mask if they have a target, and none if they have not
    (SESAME's See). roc_auc, ap: of the probability of a target, where it was measured.
    """

    def accuracy(sums: np.ndarray) -> dict[str, np.ndarray]:
        return {"see_accuracy": safe_divide(sums[..., 0], sums[..., 1])}

    right = [sum((e.overlap.prediction > 0) != e.no_target for e in record) for record in records]
    sums = np.array([right, [len(record) for record in records]], dtype=np.float64).T
    scores = {name: float(value) for name, value in accuracy(sums.sum(axis=0)).items()}
    scores |= intervals(sums, accuracy, seed=seed)
    known = [entry for record in records for entry in record if entry.probability is not None]
    if known:
        truth = np.array([not entry.no_target for entry in known])
        probabilities = np.array([entry.probability for entry in known], dtype=np.float64)
        scores |= {"roc_auc": roc_auc(truth, probabilities), "ap": average_precision(truth, probabilities)}
    return scores


def robust_section(records: Sequence[Sequence[MaskRecord]], seed: int) -> Sections:
    """The metrics of R-RefCOCO, where a reference has both sentences with and without a target; else nothing."""
    kinds = {(image, e.reference, e.no_target) for image, record in enumerate(records) for e in record}
    if not any((image, reference, not nothing) in kinds for image, reference, nothing in kinds):
        return {}
    sums = np.array(
        [
            robust_sums(
                [e.overlap for e in record], [e.no_target for e in record], [e.reference for e in record]
            )
            for record in records
        ]
    )
    measures = {name: float(value) for name, value in robust_measures(sums.sum(axis=0)).items()}
    num_references = len({(image, reference) for image, reference, _ in kinds})
    bounds = intervals(sums, robust_measures, seed=seed)
    return {"robust": {**measures, **bounds, "num_references": num_references}}


def _mask_intervals(by_image: Sequence[Sequence[Overlap]], seed: int) -> dict[str, float]:
    sums = [mask_sums(overlaps) for overlaps in by_image]
    return intervals(np.array(sums, dtype=np.float64).reshape(len(sums), 4), mask_measures, seed=seed)


def is_judged(target: np.ndarray, ignore: np.ndarray | None, *, no_target: bool) -> bool:
    """Whether anything is left of a target, (height, width), once the pixels of `ignore` are left out.

    A target that is completely ignored is not absent: a mask there would be right, and no pixel of it is counted.
    no_target: the annotators say that there is no target.
    """
    if ignore is None:
        return True
    judged = ~ignore.astype(bool)
    return bool(judged.any() if no_target else target.astype(bool)[judged].any())
