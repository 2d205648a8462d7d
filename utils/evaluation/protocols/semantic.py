"""Semantic segmentation as complex queries: all class names of the data set, `classes_per_query` at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from model.generation.answers import NameCounts
from model.outputs import SimilarityMaps
from model.processor import LasagnaProcessor
from utils.common.label_values import IGNORE, NOTHING, UNCLAIMED
from utils.data.types import SemanticSample
from utils.evaluation.instances import (
    MIN_SCORE,
    FoundInstances,
    NamedMasks,
    instance_notes,
    instance_record,
)
from utils.evaluation.metrics import (
    ConfusionMatrix,
    InstanceRecord,
    instance_measures,
    intervals,
    label_map,
    label_measures,
)
from utils.evaluation.metrics.common import ratio
from utils.evaluation.model import SegmentationModel
from utils.evaluation.prompting import EvaluationSettings, ask_freely
from utils.evaluation.protocols.base import Sections, TaskProtocol
from utils.evaluation.protocols.presence import PresenceTable
from utils.reports.sheet import SheetRow, semantic_row

NUM_NAMES_SHOWN = 20  # most frequent hallucinated names in a report


@dataclass(frozen=True, kw_only=True)
class SemanticPrediction:
    """The answers to the complex queries about one image."""

    labels: np.ndarray  # (height, width) int16 class ids, UNCLAIMED where no mask is
    asked: np.ndarray  # (num_asked,) int16 class ids, in the order of the query
    answered_present: np.ndarray  # (num_present,) int16 class ids that the model answered with [SEG]
    probabilities: np.ndarray | None = None  # (num_asked,) float64 of being present; None: generated freely
    names: NameCounts | None = None  # names in freely generated answers
    maps: SimilarityMaps | None = None  # one for each of `answered_present`, of a model with a spatial prompt
    instances: FoundInstances | None = None  # where the data set has some


@dataclass(frozen=True, kw_only=True)
class SemanticRecord:
    """One image."""

    cells: np.ndarray  # (n,) int32 flat positions in the confusion matrix
    counts: np.ndarray  # (n,) int64 pixels there
    asked: np.ndarray
    answered_present: np.ndarray
    absent: np.ndarray  # (n,) int16 class ids that are known not to be in the image
    probabilities: np.ndarray | None = None
    names: NameCounts | None = None
    instances: InstanceRecord | None = None


class SemanticProtocol(TaskProtocol[SemanticSample, SemanticPrediction, SemanticRecord]):
    """mIoU over the data set, and presence: is a class in the image? Both from the same answers."""

    task = "semantic"

    def __init__(self, settings: EvaluationSettings, classes: Sequence[str]) -> None:
        super().__init__(settings)
        self.classes = list(classes)
        self.id_of = {name: class_id for class_id, name in enumerate(self.classes)}

    # ------------------------------------------------------------------------------------ asking

    def predict(
        self, model: SegmentationModel, processor: LasagnaProcessor, samples: Sequence[SemanticSample]
    ) -> list[SemanticPrediction]:
        asked = [self._classes_to_ask(sample) for sample in samples]
        busy = [index for index, ids in enumerate(asked) if len(ids)]
        ask = self._constrained if self.settings.constrains(processor.format) else self._freely
        has_instances = any(sample.instances is not None for sample in samples)
        answers = (
            ask(model, processor, [samples[i].image for i in busy], [asked[i] for i in busy], has_instances)
            if busy
            else []
        )
        answer_of = dict(zip(busy, answers, strict=True))
        return [
            answer_of[index] if index in answer_of else self._nothing(sample)
            for index, sample in enumerate(samples)
        ]

    def _classes_to_ask(self, sample: SemanticSample) -> np.ndarray:
        if not self.settings.oracle_classes:
            return np.arange(len(self.classes), dtype=np.int16)
        ids = np.unique(sample.label)
        return ids[(ids != IGNORE) & (ids != NOTHING)].astype(np.int16)

    def _constrained(
        self,
        model: SegmentationModel,
        processor: LasagnaProcessor,
        images: list[np.ndarray],
        asked: list[np.ndarray],
        has_instances: bool,
    ) -> list[SemanticPrediction]:
        answers = model.segment_batch(
            images,
            [[self.classes[class_id] for class_id in ids] for ids in asked],
            processor=processor,
            presence_threshold=self.settings.presence_threshold,
            rethreshold=self.settings.rethreshold,
            classes_per_query=self.settings.classes_per_query,
            **({"min_score": MIN_SCORE} if has_instances else {}),
        )
        predictions = []
        for ids, answer in zip(asked, answers, strict=True):
            present = np.array([self.id_of[name] for name in answer.present_names], dtype=np.int16)
            predictions.append(
                SemanticPrediction(
                    labels=label_map(answer.masks, present.tolist()),
                    asked=ids,
                    answered_present=present,
                    probabilities=np.array(answer.probabilities, dtype=np.float64),
                    maps=answer.maps,
                    instances=FoundInstances.of(answer, self.id_of) if has_instances else None,
                )
            )
        return predictions

    def _freely(
        self,
        model: SegmentationModel,
        processor: LasagnaProcessor,
        images: list[np.ndarray],
        asked: list[np.ndarray],
        has_instances: bool,
    ) -> list[SemanticPrediction]:
        names = [[self.classes[class_id] for class_id in ids] for ids in asked]
        predictions = []
        for ids, answers in zip(
            asked, ask_freely(model, processor, images, names, self.settings), strict=True
        ):
            present = [self.id_of[query[index]] for query, answer in answers for index in answer.found]
            found = [FoundInstances.of(NamedMasks.of(*one), self.id_of) for one in answers if has_instances]
            predictions.append(
                SemanticPrediction(
                    labels=label_map(torch.cat([answer.masks for _, answer in answers]), present),
                    asked=ids,
                    answered_present=np.array(present, dtype=np.int16),
                    names=NameCounts.total(answer.counts for _, answer in answers),
                    maps=SimilarityMaps.joined([answer.maps for _, answer in answers]),
                    instances=FoundInstances.join(found) if has_instances else None,
                )
            )
        return predictions

    def _nothing(self, sample: SemanticSample) -> SemanticPrediction:
        """For an image of which no class was asked, because an oracle knows that it shows none."""
        none = np.zeros(0, dtype=np.int16)
        labels = np.full(sample.label.shape, UNCLAIMED, dtype=np.int16)
        return SemanticPrediction(
            labels=labels, asked=none, answered_present=none, instances=FoundInstances.join([])
        )

    # ---------------------------------------------------------------------------------- counting

    def record(self, sample: SemanticSample, prediction: SemanticPrediction) -> SemanticRecord:
        cells, counts = self._matrix_of(sample, prediction).cells()
        return SemanticRecord(
            cells=cells,
            counts=counts,
            asked=prediction.asked,
            answered_present=prediction.answered_present,
            absent=np.array(sample.absent, dtype=np.int16),
            probabilities=prediction.probabilities,
            names=prediction.names,
            instances=instance_record(sample, prediction.instances),
        )

    def sections(self, records: Sequence[SemanticRecord]) -> Sections:
        totals = self._totals(records)
        bounds = intervals(totals, label_measures, seed=self.settings.seed)
        table = self._presence(records)
        sections = {"semantic": {**self._confusion(records).summary(), **bounds}}
        # With an oracle only present classes are asked, so only the recall is known.
        if self.settings.oracle_classes or not table.knows_absent:
            sections["presence"] = table.recall_of_asked()
        else:
            sections["presence"] = table.summary(self.settings.seed)
        if self.settings.calibrate:
            sections["calibration"] = table.calibration()
        if drawn := self._instances(records):
            sections["instances"] = instance_measures(drawn, len(self.classes))[0]
        return sections | self._names(records)

    def notes(self, records: Sequence[SemanticRecord]) -> tuple[str, ...]:
        notes = []
        blank = sum(not record.counts.any() for record in records)
        if blank:
            notes.append(f"{blank} of {len(records)} images have no pixel that is judged")
        # The classes that an oracle asks are known to be present.
        if not self.settings.oracle_classes:
            notes += self._presence(records).notes()
        if drawn := self._instances(records):
            notes += instance_notes(drawn)
        return tuple(notes)

    def score(self, record: SemanticRecord) -> float:
        """Mean IoU over the classes in ground truth or prediction of this image."""
        return float(label_measures(self._totals([record])[0])["miou"])

    def class_table(self, records: Sequence[SemanticRecord]) -> dict[str, dict[str, float]]:
        """IoU, accuracy, pixels of ground truth and prediction, and presence, for every class."""
        matrix = self._confusion(records)
        _, true, predicted = matrix.totals()
        columns = {
            "iou": matrix.iou(),
            "accuracy": matrix.accuracy(),
            "true_pixels": true,
            "predicted_pixels": predicted,
            **self._presence(records).by_class(),
        }
        if drawn := self._instances(records):
            columns["ap"] = instance_measures(drawn, len(self.classes))[1]
        return {
            name: {column: values[class_id].item() for column, values in columns.items()}
            for class_id, name in enumerate(self.classes)
        }

    def row(self, sample: SemanticSample, prediction: SemanticPrediction) -> SheetRow:
        iou = self._matrix_of(sample, prediction).iou()
        return semantic_row(sample.image, sample.label, prediction.labels, self.classes, iou, sample.absent)

    def confusion(self, records: Sequence[SemanticRecord]) -> np.ndarray:
        """(num_classes + 1, num_classes + 1) int64 pixels; see `ConfusionMatrix.counts`."""
        return self._confusion(records).counts

    def _matrix_of(self, sample: SemanticSample, prediction: SemanticPrediction) -> ConfusionMatrix:
        matrix = ConfusionMatrix(len(self.classes))
        matrix.add(judged_label(sample, prediction.labels), prediction.labels)
        return matrix

    def _confusion(self, records: Sequence[SemanticRecord]) -> ConfusionMatrix:
        matrix = ConfusionMatrix(len(self.classes))
        for record in records:
            matrix.add_cells(record.cells, record.counts)
        return matrix

    def _totals(self, records: Sequence[SemanticRecord]) -> np.ndarray:
        """(num_images, 3, num_classes) int64, as `ConfusionMatrix.totals` of each image."""
        num_classes = len(self.classes)
        totals = np.zeros((len(records), 3, num_classes), dtype=np.int64)
        for image, record in zip(totals, records, strict=True):
            rows, columns = np.divmod(record.cells, num_classes + 1)
            # The last row is "no class", the last column "no mask".
            for kind, ids, counted in (
                (0, rows, (rows == columns) & (rows < num_classes)),
                (1, rows, rows < num_classes),
                (2, columns, columns < num_classes),
            ):
                np.add.at(image[kind], ids[counted], record.counts[counted])
        return totals

    def _instances(self, records: Sequence[SemanticRecord]) -> list[InstanceRecord]:
        return [record.instances for record in records if record.instances is not None]

    def _presence(self, records: Sequence[SemanticRecord]) -> PresenceTable:
        has_probabilities = all(record.probabilities is not None for record in records if len(record.asked))
        table = PresenceTable.empty(len(records), len(self.classes), has_probabilities=has_probabilities)
        for row, record in enumerate(records):
            rows = record.cells // (len(self.classes) + 1)
            table.truth[row, rows[rows < len(self.classes)]] = True
            table.absent[row, record.absent] = True
            table.asked[row, record.asked] = True
            table.answered[row, record.answered_present] = True
            if table.probabilities is not None and record.probabilities is not None:
                table.probabilities[row, record.asked] = record.probabilities
        return table

    def _names(self, records: Sequence[SemanticRecord]) -> Sections:
        """Counts of the names in freely generated answers, and the hallucinated ones; empty where constrained."""
        named = [record.names for record in records if record.names is not None]
        if not named:
            return {}
        total = NameCounts.total(named)
        mentions = total.num_mentions
        counts = {
            "mentions": mentions,
            "exact": total.num_exact,
            "near": total.num_near,
            "repeated": total.num_repeated,
            "hallucinated": len(total.unmatched),
            "hallucination_rate": ratio(len(total.unmatched), mentions),
            "unanswered": total.num_unanswered,
        }
        # Ties are sorted by name, so that the result does not depend on the order of the images.
        frequent = sorted(Counter(total.unmatched).items(), key=lambda item: (-item[1], item[0]))
        return {"free_names": counts, "hallucinated_names": dict(frequent[:NUM_NAMES_SHOWN])}


def judged_label(sample: SemanticSample, predicted: np.ndarray) -> np.ndarray:
    """The label, with unlabelled pixels ignored where the predicted class may be present unlabelled.

    predicted: (height, width) int16 class ids, UNCLAIMED where no mask is.
    """
    if not sample.partly:
        return sample.label
    unknown = (sample.label == NOTHING) & np.isin(predicted, np.array(sample.partly, dtype=predicted.dtype))
    return np.where(unknown, np.uint16(IGNORE), sample.label)
