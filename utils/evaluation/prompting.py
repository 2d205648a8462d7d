"""Prompting the model in evaluation: generated answers, or teacher forcing (the older protocol)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import Tensor

from model.choices import DEFAULT_MATCH_DISTANCE, DEFAULT_NEW_TOKENS
from model.errors import UserError
from model.generation.answers import FreeAnswer, read_answer
from model.generation.queries import TOKENS_PER_CLASS
from model.outputs import ChatAnswer, EncodedImage, SimilarityMaps
from model.processor import LasagnaProcessor
from model.text.conversation import Conversation
from model.text.format import SequenceFormat
from model.text.special_tokens import Text
from utils.evaluation.model import SegmentationModel

ROWS_PER_IMAGE = 8  # most queries about one image in one forward pass


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """What changes the numbers (`protocol`, which the report states), and what changes the speed only."""

    classes_per_query: int | None = None  # None: as many as one query named in training; see `for_model`
    oracle_classes: bool = False  # ask each image only for the classes that it shows
    presence_threshold: float | None = None  # probability from which a class is present; None: arg-max
    rethreshold: float | None = None  # the same, applied after decoding
    calibrate: bool = False  # report the threshold for `rethreshold` with the best F1
    free_generation: bool = False  # complex queries without the constraint of their format
    match_distance: float = DEFAULT_MATCH_DISTANCE  # of generated names; see generation/answers.py
    teacher_forced: bool = False  # the model reads the answer "It is [SEG]." instead of generating one
    max_new_tokens: int = DEFAULT_NEW_TOKENS
    max_samples: int | None = None  # of each data set, spread evenly over it; None: all
    seed: int = 0  # of the absent classes in balanced presence, and of the bootstrap
    val_batch_size: int = 1
    workers: int = 0
    encoder_precision: str = ""  # that the model was loaded with; noted in the protocol
    num_sheet_rows: int = 8  # samples of each data set on its sheet, spread evenly over it

    def __post_init__(self) -> None:
        for name in ("classes_per_query", "max_new_tokens", "max_samples", "val_batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} must be >= 1, got {value}")
        for name in ("presence_threshold", "rethreshold", "match_distance"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise UserError(f"{name} must be in 0 to 1, got {value}")
        if self.presence_threshold is not None and self.rethreshold is not None:
            raise UserError("presence_threshold acts while decoding, rethreshold after it; give one of them")
        if self.free_generation and self.asks_probabilities:
            raise UserError(
                f"{', '.join(self.asks_probabilities)} needs probabilities, and free_generation gives none; "
                "leave one of them out"
            )
        if self.calibrate and self.oracle_classes:
            raise UserError("calibrate needs absent classes too; leave oracle_classes out")

    def for_model(self, model: SegmentationModel) -> EvaluationSettings:
        """These settings with `classes_per_query` filled in from the model's config if it is None."""
        return replace(self, classes_per_query=self.names_per_query(model))

    def names_per_query(self, model: SegmentationModel) -> int:
        """Number of classes that one query names at most."""
        return self.classes_per_query or model.config.num_all_classes

    @property
    def asks_probabilities(self) -> tuple[str, ...]:
        """The settings in use that need a probability for each class."""
        used = {
            "presence_threshold": self.presence_threshold is not None,
            "rethreshold": self.rethreshold is not None,
            "calibrate": self.calibrate,
        }
        return tuple(name for name, is_used in used.items() if is_used)

    def constrains(self, format: SequenceFormat) -> bool:
        """Whether complex queries to a model of this format are answered by constrained decoding.

        Raises UserError for settings that need probabilities when the model has to answer freely.
        """
        if not format.answers_every_class and self.asks_probabilities:
            what = (
                f"no token for absent classes ({format.name} format)" if format.neg is None else str(format)
            )
            raise UserError(
                f"{', '.join(self.asks_probabilities)} needs a model that answers every class with SEG or NEG, "
                f"and this one has {what}; leave it out, complex queries are then generated freely"
            )
        return format.answers_every_class and not self.free_generation

    def protocol(self, *, constrained: bool) -> dict[str, Any]:
        """The settings that a reader of the numbers has to know.

        constrained: whether the model's format can be constrained (`SequenceFormat.answers_every_class`).
        """
        constrained = constrained and not self.free_generation
        return {
            "answers": "teacher_forced" if self.teacher_forced else "generated",
            "complex_queries": "constrained" if constrained else "generated",
            "classes_asked": "present (oracle)" if self.oracle_classes else "all",
            "classes_per_query": self.classes_per_query,
            "presence_threshold": self.presence_threshold,
            "rethreshold": self.rethreshold,
            "match_distance": None if constrained else self.match_distance,
            "max_new_tokens": self.max_new_tokens,
            "max_samples": self.max_samples,
            "seed": self.seed,
            **({"encoder_precision": self.encoder_precision} if self.encoder_precision else {}),
        }


def _no_masks() -> np.ndarray:
    return np.zeros((0, 0, 0), dtype=np.float32)


@dataclass(frozen=True, kw_only=True)
class MaskAnswer:
    """What the model answered to one query."""

    text: str
    mask: np.ndarray  # (height, width) bool, the union of the answer's masks; empty without a [SEG]
    probability: float | None = None  # that the query has a target; None: not measured
    parts: np.ndarray = field(
        default_factory=_no_masks
    )  # (num_masks, height, width) float32 logits, if asked for
    maps: SimilarityMaps | None = None  # one for each mask of the answer, of a model with a spatial prompt


def ask_for_masks(
    model: SegmentationModel,
    processor: LasagnaProcessor,
    images: Sequence[np.ndarray],
    queries: Sequence[Sequence[Text]],
    settings: EvaluationSettings,
    *,
    with_probability: bool = False,
    with_parts: bool = False,
) -> list[list[MaskAnswer]]:
    """Ask every query of `queries[i]` about image i; returns as many answers for each image.

    With `settings.teacher_forced` the model reads the expected answer, and only its mask is judged.
    with_probability: also ask for the probability that a query has a target; not when teacher-forced.
    with_parts: also return the masks one by one.
    """
    answers: list[list[MaskAnswer]] = [[] for _ in images]
    encoded = [] if settings.teacher_forced else model.encode_batch(images, processor=processor)
    for owners, asked in _slices(queries, settings.val_batch_size * ROWS_PER_IMAGE):
        used = sorted(set(owners))  # an image is encoded once for all of its rows
        rows = [used.index(owner) for owner in owners]
        if settings.teacher_forced:
            spoken = _teacher_force(model, processor, [images[owner] for owner in used], asked, rows)
        else:
            spoken = _generate(model, processor, [encoded[owner] for owner in used], asked, rows, settings)
        probabilities: Sequence[float | None] = [None] * len(owners)
        if with_probability and not settings.teacher_forced:
            probabilities = model.target_probabilities(
                [encoded[owner] for owner in used], asked, image_of_row=rows, processor=processor
            )
        for owner, answer, probability in zip(owners, spoken, probabilities, strict=True):
            mask = union_mask(answer.masks, images[owner].shape[:2])
            parts = answer.masks.float().cpu().numpy() if with_parts else _no_masks()
            answers[owner].append(
                MaskAnswer(
                    text=answer.text, mask=mask, probability=probability, parts=parts, maps=answer.maps
                )
            )
    return answers


def ask_freely(
    model: SegmentationModel,
    processor: LasagnaProcessor,
    images: Sequence[np.ndarray],
    classes: Sequence[Sequence[str]],
    settings: EvaluationSettings,
) -> list[list[tuple[tuple[str, ...], FreeAnswer]]]:
    """Complex queries answered by unconstrained generation.

    Returns:
        for each image its queries, each a tuple of at most `classes_per_query` names, with their answers;
        `FreeAnswer.found` holds indices into the names of the query.
    """
    limit = settings.names_per_query(model)
    asked = [
        [tuple(names[start : start + limit]) for start in range(0, len(names), limit)] for names in classes
    ]
    queries = [[processor.format.query(names) for names in of_image] for of_image in asked]
    flat = [names for of_image in asked for names in of_image]
    most = TOKENS_PER_CLASS * (max((len(names) for names in flat), default=0) + 1)
    answers: list[list[tuple[tuple[str, ...], FreeAnswer]]] = [[] for _ in images]
    encoded = model.encode_batch(images, processor=processor)  # once, however many queries there are
    done = 0
    for owners, texts in _slices(queries, settings.val_batch_size * ROWS_PER_IMAGE):
        used = sorted(set(owners))
        rows = [used.index(owner) for owner in owners]
        spoken = _generate(
            model, processor, [encoded[i] for i in used], texts, rows, settings, max_new_tokens=most
        )
        asked_now = flat[done : done + len(owners)]
        for owner, names, answer in zip(owners, asked_now, spoken, strict=True):
            read = read_answer(answer, names, processor.format, max_distance=settings.match_distance)
            answers[owner].append((names, read))
        done += len(owners)
    return answers


def ask_for_text(
    model: SegmentationModel,
    processor: LasagnaProcessor,
    images: Sequence[np.ndarray],
    queries: Sequence[Text],
    settings: EvaluationSettings,
) -> list[str]:
    """Ask query i about image i; returns the generated texts."""
    rows = list(range(len(images)))
    return [answer.text for answer in _generate(model, processor, images, queries, rows, settings)]


def union_mask(logits: Tensor, size: tuple[int, int]) -> np.ndarray:
    """(num_masks, height, width) logits -> (height, width) bool, where any logit is positive."""
    if not len(logits):
        return np.zeros(size, dtype=bool)
    return (logits > 0).any(dim=0).cpu().numpy()


def _slices(queries: Sequence[Sequence[Text]], most: int) -> Iterator[tuple[list[int], list[Text]]]:
    """The queries in slices of at most `most`, with the index of each one's image."""
    flat = [(owner, query) for owner, asked in enumerate(queries) for query in asked]
    for start in range(0, len(flat), most):
        part = flat[start : start + most]
        yield [owner for owner, _ in part], [query for _, query in part]


def _generate(
    model: SegmentationModel,
    processor: LasagnaProcessor,
    images: Sequence[np.ndarray | EncodedImage],
    queries: Sequence[Text],
    image_of_row: Sequence[int],
    settings: EvaluationSettings,
    *,
    max_new_tokens: int | None = None,
) -> list[ChatAnswer]:
    """A generated answer to every query."""
    return model.generate_batch(
        images,
        [Conversation.of(query) for query in queries],
        image_of_row=image_of_row,
        processor=processor,
        max_new_tokens=max_new_tokens or settings.max_new_tokens,
    )


def _teacher_force(
    model: SegmentationModel,
    processor: LasagnaProcessor,
    images: Sequence[np.ndarray],
    queries: Sequence[Text],
    image_of_row: Sequence[int],
) -> list[ChatAnswer]:
    """For every query the given answer and the mask of its [SEG]."""
    answer = processor.format.found()
    conversations = [Conversation.of(query, answer) for query in queries]
    inputs = processor.collate(images, conversations, image_of_row, pack_rows=model.can_pack_rows)
    masks = model(**inputs.to(model.device).fields()).masks
    assert masks is not None
    # Each row has one [SEG], and the rows of an image are adjacent.
    return [
        ChatAnswer(text="".join(answer), masks=mask[None], token_ids=[])
        for masks_of_image in masks
        for mask in masks_of_image
    ]
