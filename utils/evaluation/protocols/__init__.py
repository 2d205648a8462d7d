"""How each task is prompted and judged.

A protocol turns a sample into a prediction, a prediction into a small record, and all records into numbers;
so records can be gathered from processes, kept on disk, and counted when they are complete.

    semantic      all class names of the data set, `classes_per_query` at once, by constrained decoding
    referring     one query for each expression; the union of the masks of the answer is the prediction
    generalized   the same for data in which an expression may have no target, such as gRefCOCO
    reasoning     one question about each image
    multi         questions about each image with several targets each, matched to the masks of the answer
    vqa           one question about each image, the answer compared as text
"""

from __future__ import annotations

from collections.abc import Mapping

from model.generation.answers import NameCounts
from utils.data.types import (
    EvalSample,
    MultiTargetSample,
    ReasonSample,
    ReferringSample,
    SemanticSample,
    VqaSample,
)
from utils.evaluation.prompting import EvaluationSettings
from utils.evaluation.protocols.base import Sections, TaskProtocol
from utils.evaluation.protocols.masks import (
    GeneralizedProtocol,
    MaskRecord,
    ReasoningProtocol,
    ReasonRecord,
    ReferringProtocol,
)
from utils.evaluation.protocols.multi import MultiRecord, MultiTargetProtocol
from utils.evaluation.protocols.semantic import SemanticPrediction, SemanticProtocol, SemanticRecord
from utils.evaluation.protocols.vqa import VqaProtocol, VqaRecord

__all__ = [
    "GeneralizedProtocol",
    "MaskRecord",
    "MultiRecord",
    "MultiTargetProtocol",
    "NameCounts",
    "ReasonRecord",
    "ReasoningProtocol",
    "ReferringProtocol",
    "Sections",
    "SemanticPrediction",
    "SemanticProtocol",
    "SemanticRecord",
    "TaskProtocol",
    "VqaProtocol",
    "VqaRecord",
    "protocol_for",
]


def protocol_for(sample: EvalSample, settings: EvaluationSettings, *, has_no_target: bool) -> TaskProtocol:
    """The protocol of a data set, from the type of one of its samples.

    has_no_target: whether some of its expressions have no target in their image; see `Dataset.has_no_target`.
    """
    if isinstance(sample, SemanticSample):
        return SemanticProtocol(settings, sample.classes)
    if isinstance(sample, ReferringSample):
        return (GeneralizedProtocol if has_no_target else ReferringProtocol)(settings)
    by_type: Mapping[type, type[TaskProtocol]] = {
        ReasonSample: ReasoningProtocol,
        MultiTargetSample: MultiTargetProtocol,
        VqaSample: VqaProtocol,
    }
    return by_type[type(sample)](settings)
