"""Answers as JSON: what chat.py --json prints and the server sends. docs/answer.schema.json is made from these types.

A change that a reader could notice gets a new version.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import (
    Any,
    NotRequired,  # pydantic needs these before Python 3.12
)

from typing_extensions import TypedDict

from model.exports import FoundMask, InstanceSource
from utils.serving.answers import Answer

VERSION = "lasagna.answer/2"
CONVERSATION_VERSION = "lasagna.conversation/1"
DIGITS = 6  # of probabilities and scores


class RunLengthsJson(TypedDict):
    """COCO's compressed run-length code; pycocotools.mask.decode reads it."""

    size: list[int]  # height, width
    counts: str


class ClassJson(TypedDict):
    """What the answer decides about one class."""

    label: str
    present: bool | None  # null: a mask that names no class may be of this one
    probability: float | None  # null: the model gives none


class MaskJson(TypedDict):
    """One mask of the answer or, with --instances, one object."""

    label: str  # "" where the answer does not name it
    probability: float | None  # of the class
    score: float  # mean probability of the mask's pixels, times that of the class
    box: list[int]  # x, y, width, height in pixels of the image
    area: int  # pixels
    rle: RunLengthsJson
    polygons: NotRequired[list[list[float]]]  # outer outlines [x0, y0, x1, y1, ...]; on request
    file: NotRequired[str]  # the mask as a PNG, 255 inside
    cutout: NotRequired[str]  # what the mask covers as a PNG, transparent outside
    map: NotRequired[str]  # the similarity map of its [SEG] over the image as a PNG, of a spatial prompt


class ImageJson(TypedDict):
    """The image that was asked about, upright."""

    file: NotRequired[str]
    height: int
    width: int


class AnswerJson(TypedDict):
    """One answer."""

    schema: str  # "lasagna.answer/2"
    image: ImageJson
    prompt: str | None  # a question in words, or
    asked: list[str] | None  # the classes of a complex query
    text: str
    complete: bool  # false: cut after max_new_tokens
    threshold: float | None  # of presence; null: the more probable choice
    classes: list[ClassJson]
    instances: InstanceSource | None  # what `masks` are; null: one mask for each class or [SEG]
    masks: list[MaskJson]
    remark: str  # what of the answer could not be used
    overlay: NotRequired[str]  # file


class ConversationJson(TypedDict):
    """What :save writes: the answers about one image, in their order."""

    schema: str  # "lasagna.conversation/1"
    model: str
    answers: list[AnswerJson]


def mask_json(mask: FoundMask, *, polygons: bool = False) -> MaskJson:
    """One mask."""
    entry = MaskJson(
        label=mask.label,
        probability=rounded(mask.probability),
        score=round(mask.score, DIGITS),
        box=list(mask.box),
        area=mask.area,
        rle=RunLengthsJson(size=mask.run_lengths["size"], counts=mask.run_lengths["counts"]),
    )
    if polygons:
        entry["polygons"] = mask.polygons
    return entry


def answer_json(
    answer: Answer,
    found: Sequence[FoundMask],
    *,
    size: tuple[int, int],
    file: str | None = None,
    threshold: float | None = None,
    polygons: bool = False,
    instances: bool = False,
) -> AnswerJson:
    """An answer with its masks; size: (height, width) of the image; instances: whether `found` are its instances."""
    image = ImageJson(height=size[0], width=size[1])
    if file is not None:
        image["file"] = file
    return AnswerJson(
        schema=VERSION,
        image=image,
        prompt=answer.question or None,
        asked=None if answer.question else [one.label for one in answer.classes],
        text=answer.text,
        complete=answer.is_complete,
        threshold=threshold,
        classes=[
            ClassJson(label=one.label, present=one.present, probability=rounded(one.probability))
            for one in answer.classes
        ],
        instances=answer.instance_source if instances else None,
        masks=[mask_json(mask, polygons=polygons) for mask in found],
        remark=answer.remark,
    )


def rounded(number: float | None) -> float | None:
    """A probability as it is written."""
    return None if number is None else round(number, DIGITS)


def one_json_line(content: Any) -> str:
    """JSON in one line of ASCII, which commands no terminal and survives every pipe."""
    return json.dumps(content, ensure_ascii=True, allow_nan=False)
