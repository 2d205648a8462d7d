"""The instances that a model found, beside those that annotators drew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from model.decoders.decoded import Instances
from model.exports import Exportable, FoundMask
from model.generation.answers import FreeAnswer
from model.outputs import objects_of
from utils.data.types import SemanticSample
from utils.evaluation.metrics import InstanceRecord

# Instances of a concept head with a lower score are left out: they would lengthen the curve, at great cost.
MIN_SCORE = 0.05
MAX_DETECTIONS = 100  # that COCO counts of one class in one image


@dataclass(frozen=True, kw_only=True)
class FoundInstances:
    """Instances found in one image, of any class."""

    classes: np.ndarray  # (m,) int16 class ids
    masks: tuple[bytes, ...]  # m of COCO's compressed run lengths
    scores: np.ndarray  # (m,) float64

    @classmethod
    def of(cls, answer: Exportable, id_of: Mapping[str, int]) -> FoundInstances:
        """Those of an answer about classes: of a concept head, or the connected parts of its masks."""
        by_class: dict[int, list[FoundMask]] = {}
        for found in answer.found(instances=True):
            by_class.setdefault(id_of[found.label], []).append(found)
        kept = [
            (class_id, one)
            for class_id, found in by_class.items()
            for one in sorted(found, key=lambda mask: -mask.score)[:MAX_DETECTIONS]
        ]
        return cls(
            classes=np.array([class_id for class_id, _ in kept], dtype=np.int16),
            masks=tuple(one.run_lengths["counts"].encode("ascii") for _, one in kept),
            scores=np.array([one.score for _, one in kept], dtype=np.float64),
        )

    @classmethod
    def join(cls, parts: Sequence[FoundInstances]) -> FoundInstances:
        """Those of several answers about one image."""
        return cls(
            classes=np.concatenate([np.zeros(0, dtype=np.int16), *(part.classes for part in parts)]),
            masks=tuple(mask for part in parts for mask in part.masks),
            scores=np.concatenate([np.zeros(0), *(part.scores for part in parts)]),
        )


@dataclass(frozen=True, kw_only=True)
class NamedMasks(Exportable):
    """The masks of a freely generated answer to a complex query."""

    names: tuple[str, ...]  # of each mask
    masks: Tensor  # (num_masks, height, width) float32 logits
    instances: tuple[Instances, ...] | None = None

    @classmethod
    def of(cls, query: Sequence[str], answer: FreeAnswer) -> NamedMasks:
        """`query`: the names that the answer was read for."""
        names = tuple(query[index] for index in answer.found)
        return cls(names=names, masks=answer.masks, instances=answer.instances)

    def labels_and_probabilities(self) -> list[tuple[str, float | None]]:
        """For each mask its class; an answer in words has no probabilities."""
        return [(name, None) for name in self.names]

    def own_instances(self) -> Sequence[FoundMask] | None:
        """Those of a concept head."""
        return objects_of(self.labels_and_probabilities(), self.instances)


def instance_record(sample: SemanticSample, found: FoundInstances | None) -> InstanceRecord | None:
    """What average precision needs of an image; None for data without instances.

    Like LVIS, an image judges only the classes that it is known to show, completely annotated, or not to show.
    """
    truth = sample.instances
    if truth is None or found is None:
        return None
    judged = np.isin(found.classes, np.array(truth.judged, dtype=np.int16))
    chosen = np.flatnonzero(judged)
    return InstanceRecord(
        size=(sample.image.shape[0], sample.image.shape[1]),
        true_classes=np.array(truth.classes, dtype=np.int16),
        true_masks=truth.masks,
        crowds=np.array(truth.crowds, dtype=bool),
        found_classes=found.classes[chosen],
        found_masks=tuple(found.masks[index] for index in chosen),
        scores=found.scores[chosen],
        num_unjudged=int((~judged).sum()),
    )


def instance_notes(records: Sequence[InstanceRecord]) -> list[str]:
    """Which part of the data average precision leaves out."""
    num = sum(record.num_unjudged for record in records)
    return (
        [f"AP leaves out {num} instances found of classes about which their image says nothing"]
        if num
        else []
    )
