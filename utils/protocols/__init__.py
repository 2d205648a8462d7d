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

from collections.abc import Mapping

from utils.asking import EvaluationSettings
from utils.data.types import EvalSample, ReasonSample, ReferringSample, SemanticSample, VqaSample
from utils.matching import NameCounts
from utils.protocols.base import Protocol, Sections
from utils.protocols.masks import (
    GeneralizedProtocol,
    MaskRecord,
    ReasoningProtocol,
    ReasonRecord,
    ReferringProtocol,
)
from utils.protocols.semantic import SemanticPrediction, SemanticProtocol, SemanticRecord
from utils.protocols.vqa import VqaProtocol, VqaRecord

__all__ = [
    "GeneralizedProtocol",
    "MaskRecord",
    "NameCounts",
    "Protocol",
    "ReasonRecord",
    "ReasoningProtocol",
    "ReferringProtocol",
    "Sections",
    "SemanticPrediction",
    "SemanticProtocol",
    "SemanticRecord",
    "VqaProtocol",
    "VqaRecord",
    "protocol_for",
]


def protocol_for(sample: EvalSample, dataset_name: str, settings: EvaluationSettings) -> Protocol:
    """The protocol of a data set, by the kind of its samples."""
    if isinstance(sample, SemanticSample):
        return SemanticProtocol(settings, sample.classes)
    if isinstance(sample, ReferringSample):
        return (GeneralizedProtocol if dataset_name == "grefcoco" else ReferringProtocol)(settings)
    by_type: Mapping[type, type[Protocol]] = {ReasonSample: ReasoningProtocol, VqaSample: VqaProtocol}
    return by_type[type(sample)](settings)
