"""How each task is asked and judged.

A protocol turns a sample into a prediction, a prediction into a small record, and all records into numbers;
so records can be gathered from processes, kept, and counted whenever they are complete.

    semantic      all class names of the data set, `classes_per_query` at once, by constrained decoding
    referring     one query for each expression; the union of the masks of the answer is the prediction
    generalized   the same for gRefCOCO, where an expression may have several targets or none
    reasoning     one question an image
    vqa           one question an image, the answer compared as text
"""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from model.sequence import reasoning_query, referring_query
from utils.asking import EvaluationSettings, MaskAnswer, ask_for_masks, ask_for_text
from utils.data.types import EvalSample, ReasonSample, ReferringSample, SemanticSample, VqaSample
from utils.metrics import (
    NO_TARGET_PIXELS,
    ConfusionMatrix,
    ExactMatch,
    Overlap,
    PresenceCounts,
    balanced_pairs,
    generalized_scores,
    label_map,
    mask_scores,
    overlap,
)
from utils.visualize import SheetRow, mask_row, semantic_row

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

    def per_class(self, records: Sequence[Any]) -> dict[str, float]:
        """IoU of each class that was counted, where there are classes."""
        return {}

    def picture(self, sample: Any, prediction: Any) -> SheetRow | None:
        """The sample as a row of a sheet, where there is something to see."""
        return None


# ----------------------------------------------------------------------------------------- semantic


@dataclass(frozen=True, kw_only=True)
class SemanticPrediction:
    labels: np.ndarray  # (height, width) int16 class ids, UNCLAIMED where no mask is
    answered_present: np.ndarray  # (num_present,) class ids that the model answered with [SEG]


@dataclass(frozen=True, kw_only=True)
class SemanticRecord:
    cells: np.ndarray  # (n,) int32 flat positions in the confusion matrix
    counts: np.ndarray  # (n,) int64 pixels there
    answered_present: np.ndarray  # (num_present,) class ids


class SemanticProtocol(Protocol):
    """mIoU over the data set, and presence: is a class in the image? Both from the same answers."""

    task = "semantic"

    def __init__(self, settings: EvaluationSettings, classes: Sequence[str]) -> None:
        super().__init__(settings)
        self.classes = list(classes)
        self.id_of = {name: class_id for class_id, name in enumerate(self.classes)}

    def predict(
        self, model: Any, processor: Any, samples: Sequence[SemanticSample]
    ) -> list[SemanticPrediction]:
        answers = model.segment_batch(
            [sample.image for sample in samples],
            [self.classes] * len(samples),
            processor=processor,
            presence_threshold=self.settings.presence_threshold,
            classes_per_query=self.settings.classes_per_query,
        )
        return [self._merge(answer) for answer in answers]

    def _merge(self, answer: Any) -> SemanticPrediction:
        ids = [self.id_of[name] for name in answer.present_names]
        labels = label_map(answer.masks, ids)
        return SemanticPrediction(labels=labels, answered_present=np.array(ids, dtype=np.int16))

    def record(self, sample: SemanticSample, prediction: SemanticPrediction) -> SemanticRecord:
        matrix = ConfusionMatrix(len(self.classes))
        matrix.add(sample.label, prediction.labels)
        cells = np.flatnonzero(matrix.counts).astype(np.int32)
        return SemanticRecord(
            cells=cells, counts=matrix.counts.ravel()[cells], answered_present=prediction.answered_present
        )

    def sections(self, records: Sequence[SemanticRecord]) -> Sections:
        return {"semantic": self._confusion(records).summary(), "presence": self._presence(records)}

    def per_class(self, records: Sequence[SemanticRecord]) -> dict[str, float]:
        iou = self._confusion(records).iou()
        return {
            name: float(value) for name, value in zip(self.classes, iou, strict=True) if np.isfinite(value)
        }

    def picture(self, sample: SemanticSample, prediction: SemanticPrediction) -> SheetRow:
        matrix = ConfusionMatrix(len(self.classes))
        matrix.add(sample.label, prediction.labels)
        return semantic_row(sample.image, sample.label, prediction.labels, self.classes, matrix.iou())

    def _confusion(self, records: Sequence[SemanticRecord]) -> ConfusionMatrix:
        matrix = ConfusionMatrix(len(self.classes))
        for record in records:
            matrix.counts.ravel()[record.cells] += record.counts
        return matrix

    def _presence(self, records: Sequence[SemanticRecord]) -> dict[str, float]:
        """Balanced pairs: every present class of an image, and as many absent ones that other images hold."""
        truth = np.zeros((len(records), len(self.classes)), dtype=bool)
        answered = np.zeros_like(truth)
        for row, record in enumerate(records):
            truth[row, record.cells // (len(self.classes) + 1)] = True
            answered[row, record.answered_present] = True
        occurs = truth.any(axis=0)
        counts = PresenceCounts()
        for row in range(len(records)):
            pairs = balanced_pairs(truth[row], occurs, np.random.default_rng((self.settings.seed, row)))
            counts.add(truth[row, pairs], answered[row, pairs])
        every_pair = PresenceCounts()
        every_pair.add(truth, answered)
        # Beside the balanced pairs, every class name that was asked; nearly all of them are absent.
        return counts.summary() | {f"{name}_all": value for name, value in every_pair.summary().items()}


# --------------------------------------------------------------------- referring, reasoning and text


@dataclass(frozen=True, kw_only=True)
class MaskRecord:
    overlap: Overlap
    no_target: bool


class ReferringProtocol(Protocol):
    """Every expression of every image is a sample of its own."""

    task = "referring"

    def predict(
        self, model: Any, processor: Any, samples: Sequence[ReferringSample]
    ) -> list[list[MaskAnswer]]:
        queries = [[referring_query(expression) for expression in sample.expressions] for sample in samples]
        return ask_for_masks(model, processor, [sample.image for sample in samples], queries, self.settings)

    def record(self, sample: ReferringSample, prediction: Sequence[MaskAnswer]) -> list[MaskRecord]:
        return [
            MaskRecord(overlap=overlap(answer.mask, mask, sample.ignore), no_target=no_target)
            for answer, mask, no_target in zip(prediction, sample.masks, sample.no_target, strict=True)
        ]

    def sections(self, records: Sequence[Sequence[MaskRecord]]) -> Sections:
        flat = [record.overlap for records_of_image in records for record in records_of_image]
        return {"referring": {**mask_scores(flat), "num_expressions": len(flat)}}

    def picture(self, sample: ReferringSample, prediction: Sequence[MaskAnswer]) -> SheetRow:
        # One of the expressions: another for each image, the same in every run.
        number = zlib.crc32(sample.source.encode()) % len(sample.expressions)
        return mask_row(
            sample.image,
            sample.masks[number],
            prediction[number].mask,
            question=sample.expressions[number],
            answer=prediction[number].text,
            iou=overlap(prediction[number].mask, sample.masks[number], sample.ignore).iou,
        )


class GeneralizedProtocol(ReferringProtocol):
    """gRefCOCO, by two rules: an empty answer says "no target", or one of fewer than 50 pixels does."""

    task = "generalized"

    def sections(self, records: Sequence[Sequence[MaskRecord]]) -> Sections:
        flat = [record for records_of_image in records for record in records_of_image]
        overlaps, no_target = [r.overlap for r in flat], [r.no_target for r in flat]
        plain = generalized_scores(overlaps, no_target)
        ruled = generalized_scores(overlaps, no_target, min_pixels=NO_TARGET_PIXELS)
        count = {"num_expressions": len(flat), "num_no_target": sum(no_target)}
        return {
            "generalized": {**plain, **{f"{name}_50px": value for name, value in ruled.items()}, **count},
            "no_target": {"accuracy": plain["n_acc"], "accuracy_50px": ruled["n_acc"], **count},
        }


class ReasoningProtocol(Protocol):
    """One question an image; ignored pixels are left out."""

    task = "reasoning"

    def predict(self, model: Any, processor: Any, samples: Sequence[ReasonSample]) -> list[MaskAnswer]:
        queries = [[reasoning_query(sample.question, sample.is_sentence)] for sample in samples]
        answers = ask_for_masks(
            model, processor, [sample.image for sample in samples], queries, self.settings
        )
        return [answer for (answer,) in answers]

    def record(self, sample: ReasonSample, prediction: MaskAnswer) -> MaskRecord:
        return MaskRecord(overlap=overlap(prediction.mask, sample.mask, sample.ignore), no_target=False)

    def sections(self, records: Sequence[MaskRecord]) -> Sections:
        return {"reasoning": mask_scores(record.overlap for record in records)}

    def picture(self, sample: ReasonSample, prediction: MaskAnswer) -> SheetRow:
        return mask_row(
            sample.image,
            sample.mask,
            prediction.mask,
            question=sample.question,
            answer=prediction.text,
            iou=overlap(prediction.mask, sample.mask, sample.ignore).iou,
        )


class VqaProtocol(Protocol):
    """Generated text, right when it equals the expected one but for case, articles and punctuation."""

    task = "vqa"

    def predict(self, model: Any, processor: Any, samples: Sequence[VqaSample]) -> list[str]:
        queries = [(sample.question,) for sample in samples]
        return ask_for_text(model, processor, [sample.image for sample in samples], queries, self.settings)

    def record(self, sample: VqaSample, prediction: str) -> bool:
        return ExactMatch().add(prediction, sample.answer)

    def sections(self, records: Sequence[bool]) -> Sections:
        return {"vqa": ExactMatch(list(records)).summary()}


def protocol_for(sample: EvalSample, dataset_name: str, settings: EvaluationSettings) -> Protocol:
    """The protocol of a data set, by the kind of its samples."""
    if isinstance(sample, SemanticSample):
        return SemanticProtocol(settings, sample.classes)
    if isinstance(sample, ReferringSample):
        return (GeneralizedProtocol if dataset_name == "grefcoco" else ReferringProtocol)(settings)
    by_type: Mapping[type, type[Protocol]] = {ReasonSample: ReasoningProtocol, VqaSample: VqaProtocol}
    return by_type[type(sample)](settings)
