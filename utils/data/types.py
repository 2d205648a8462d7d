"""The dataclasses of the data pipeline: fields with their shapes, checked when an instance is made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from model.errors import UserError

if TYPE_CHECKING:
    import torch

    from model.inputs import ModelInputs
    from model.text.conversation import Conversation
    from model.text.encoded import Encoded
    from model.text.format import SequenceFormat

MAX_REASON = 600  # characters of the reason why an item is unusable


def cut(text: str, most: int = MAX_REASON) -> str:
    """A message shortened in the middle to about `most` characters, as with a file name of 5,000 characters."""
    return text if len(text) <= most else f"{text[: most // 2]} ... {text[-most // 2 :]}"


class UnusableItemError(UserError):
    """One item of a data set cannot be used: the file at fault, and the reason.

    Training replaces such an item by another draw and counts it; evaluation stops with the error.
    """

    def __init__(self, path: str | Path, reason: str) -> None:
        reason = cut(reason)
        super().__init__(f"{path}: {reason}")
        self.path = str(path)
        self.reason = reason

    def __reduce__(self) -> tuple[type[UnusableItemError], tuple[str, str]]:
        return type(self), (
            self.path,
            self.reason,
        )  # so that it can be pickled by the worker processes of a loader


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How annotations become conversations: the settings of `sample_of` and `draw`."""

    format: SequenceFormat
    num_all_classes: int = 80  # maximum number of classes in a complex query
    num_expressions: int = 5  # maximum number of referring expressions of one image, a conversation each
    num_questions: int = 3  # maximum number of reasoning questions of one image, a conversation each
    explanatory: float = (
        0.1  # fraction of reasoning images with an explanation that are answered by text only
    )
    likely_negatives: float = (
        0.0  # fraction of hard negatives: absent classes of a query that another image shows
    )

    def __post_init__(self) -> None:
        for field in ("num_all_classes", "num_expressions", "num_questions"):
            if getattr(self, field) < 1:
                raise UserError(f"{field} must be >= 1, got {getattr(self, field)}")
        for field in ("explanatory", "likely_negatives"):
            if not 0 <= getattr(self, field) <= 1:
                raise UserError(f"{field} is a fraction, 0 to 1; got {getattr(self, field)}")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One image, its conversations, and the masks their [SEG] tokens stand for."""

    image: np.ndarray  # (height, width, 3) uint8 RGB, original size
    conversations: tuple[Conversation, ...]
    masks: np.ndarray  # (num_seg, height, width) uint8, in the order of the [SEG] tokens
    source: str  # the image file, for messages
    dataset: str = ""  # the data set's name, for counting
    skipped: tuple[str, ...] = ()  # "path: reason" of unusable items that this one replaces
    classes_left_out: int = 0  # absent classes left out of the queries to fit the maximum length
    conversations_left_out: int = 0  # conversations left out because they were still too long
    encoded: tuple[Encoded, ...] = ()  # the conversations as ids, where their length was measured

    def __post_init__(self) -> None:
        check_image(self.image, self.source)
        if not self.conversations:
            raise UserError(f"{self.source}: a sample needs at least one conversation")
        if self.encoded and len(self.encoded) != len(self.conversations):
            raise UserError(f"{self.source}: {len(self.encoded)} encoded of {len(self.conversations)}")
        check_masks(self.masks, self.image, self.source)
        num_seg = sum(conversation.num_seg for conversation in self.conversations)
        if num_seg != len(self.masks):
            raise UserError(f"{self.source}: {num_seg} [SEG] in the answers but {len(self.masks)} masks")


@dataclass(frozen=True, kw_only=True)
class Batch:
    """The inputs of one forward pass, and the samples that they come from."""

    # With a cache of SAM's embeddings, `inputs.sam_images` holds the samples in `sam_missing` and
    # `inputs.sam_embeddings` the others, until SamCache.complete makes them one.
    inputs: ModelInputs
    sources: tuple[str, ...]  # one per sample
    datasets: tuple[str, ...]  # one per sample
    skipped: tuple[str, ...]  # of all its samples
    classes_left_out: int = 0  # of all its samples
    conversations_left_out: int = 0  # of all its samples
    num_shortened: int = 0  # samples from which something was left out
    sam_keys: tuple[str, ...] = ()  # one per sample, where there is a cache
    sam_missing: tuple[int, ...] = ()  # samples that are not in it

    def to(self, device: torch.device | str) -> Batch:
        """The same batch with its tensors on `device`."""
        return replace(self, inputs=self.inputs.to(device))

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory; torch's DataLoader calls this when asked to pin."""
        return replace(self, inputs=self.inputs.pin_memory())


@dataclass(frozen=True, kw_only=True)
class TrueInstances:
    """The instances that annotators drew in one image."""

    classes: tuple[int, ...]  # n class ids
    masks: tuple[bytes, ...]  # n of COCO's compressed run lengths
    crowds: tuple[bool, ...]  # n: a group of instances drawn as one
    judged: tuple[int, ...]  # class ids: every instance of them is drawn, or the image is known to show none

    def __post_init__(self) -> None:
        assert len(self.classes) == len(self.masks) == len(self.crowds)


@dataclass(frozen=True, kw_only=True)
class SemanticSample:
    """One evaluation image with a class id for every pixel."""

    image: np.ndarray  # (height, width, 3) uint8 RGB
    label: np.ndarray  # (height, width) uint16: index into classes, IGNORE or NOTHING
    classes: Sequence[str]  # spoken names, the data set's whole list in its order
    source: str
    # Class ids. Nothing is known about classes that are neither in the label nor in `absent`.
    absent: tuple[int, ...] = ()  # known not to be in the image
    partly: tuple[int, ...] = ()  # may occur where the label says NOTHING: their masks are not judged there
    instances: TrueInstances | None = None  # where the data set has them

    def __post_init__(self) -> None:
        check_image(self.image, self.source)
        if self.label.shape != self.image.shape[:2] or self.label.dtype != np.uint16:
            raise UserError(
                f"{self.source}: label must be {self.image.shape[:2]} uint16, "
                f"got {self.label.shape} {self.label.dtype}"
            )


@dataclass(frozen=True, kw_only=True)
class ReferringSample:
    """One evaluation image with all its referring expressions."""

    image: np.ndarray  # (height, width, 3) uint8 RGB
    expressions: tuple[str, ...]
    masks: np.ndarray  # (num_expressions, height, width) uint8: union of an expression's targets
    no_target: tuple[bool, ...]  # one per expression: true if the annotators say that nothing matches
    source: str
    ignore: np.ndarray | None = None  # (height, width) bool: pixels left out of the metric
    as_written: bool = False  # the expressions are whole questions, to be asked as they are
    references: tuple[int, ...] = ()  # for each expression, which reference it is a sentence of; (): unknown

    def __post_init__(self) -> None:
        check_image(self.image, self.source)
        check_masks(self.masks, self.image, self.source)
        if not len(self.expressions) == len(self.masks) == len(self.no_target):
            raise UserError(
                f"{self.source}: {len(self.expressions)} expressions, {len(self.masks)} masks, "
                f"{len(self.no_target)} no-target marks; these must be as many"
            )
        if len(self.references) not in (0, len(self.expressions)):
            raise UserError(
                f"{self.source}: {len(self.expressions)} expressions of {len(self.references)} references; "
                "give one for each expression, or none"
            )


@dataclass(frozen=True, kw_only=True)
class ReasonSample:
    """One evaluation image with the question of the protocol."""

    image: np.ndarray  # (height, width, 3) uint8 RGB
    question: str  # a whole sentence, or a phrase to be put into a question
    is_sentence: bool
    mask: np.ndarray  # (height, width) uint8
    ignore: np.ndarray  # (height, width) bool: pixels left out of the metric
    source: str

    def __post_init__(self) -> None:
        check_image(self.image, self.source)
        check_masks(self.mask[None], self.image, self.source)


@dataclass(frozen=True, kw_only=True)
class MultiTargetSample:
    """One evaluation image with questions that have several targets each."""

    image: np.ndarray  # (height, width, 3) uint8 RGB
    questions: tuple[str, ...]  # whole sentences
    masks: tuple[np.ndarray, ...]  # for each question (num_targets, height, width) uint8
    source: str

    def __post_init__(self) -> None:
        check_image(self.image, self.source)
        for masks in self.masks:
            check_masks(masks, self.image, self.source)
        if len(self.questions) != len(self.masks):
            raise UserError(f"{self.source}: {len(self.questions)} questions, masks of {len(self.masks)}")


@dataclass(frozen=True, kw_only=True)
class VqaSample:
    """One evaluation image with one question and the expected answer."""

    image: np.ndarray  # (height, width, 3) uint8 RGB
    question: str
    answer: str
    source: str


EvalSample = SemanticSample | ReferringSample | ReasonSample | MultiTargetSample | VqaSample


def check_image(image: np.ndarray, source: str) -> None:
    """UserError unless an image is (height, width, 3) uint8."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise UserError(f"{source}: image must be (height, width, 3) uint8, got {image.shape} {image.dtype}")


def check_masks(masks: np.ndarray, image: np.ndarray, source: str) -> None:
    """UserError unless masks are (num, height, width) uint8 of the image's size; num may be 0."""
    if masks.dtype != np.uint8 or masks.ndim != 3 or masks.shape[1:] != image.shape[:2]:
        raise UserError(
            f"{source}: masks must be (num, {image.shape[0]}, {image.shape[1]}) uint8, "
            f"got {masks.shape} {masks.dtype}"
        )
