"""Requests that wait for the model, each with its answer to come."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from model.errors import UserError
from model.generation.sampling import Sampling
from model.outputs import Segmentation
from model.text.conversation import Conversation
from utils.serving.answers import OnText

MAX_MASK_PIXELS = 1_500_000_000  # of all masks of a batch: 6 GB while they are logits
MAX_CLASSES = 5_000  # of one class query: 63 passes of the language model with 80 names each
USUAL_MASKS = 8  # of an answer in words; one with more is stopped before the masks of a batch are too many


@dataclass(kw_only=True, eq=False)
class Job:
    """A request that waits, and its answer."""

    image: np.ndarray  # (height, width, 3) uint8
    answer: Future[Any] = field(default_factory=Future)
    is_gone: threading.Event = field(default_factory=threading.Event)  # nobody waits for the answer any more

    @property
    def group(self) -> tuple[object, ...]:
        """Jobs of one group can be answered in one batch."""
        raise NotImplementedError

    @property
    def num_mask_pixels(self) -> int:
        """Pixels of all masks that the answer may have, or probably has."""
        raise NotImplementedError

    @property
    def num_pixels(self) -> int:
        """Pixels of the image."""
        return self.image.shape[0] * self.image.shape[1]

    def withdraw(self) -> None:
        """Nobody waits any more."""
        self.is_gone.set()
        self.answer.cancel()


@dataclass(kw_only=True, eq=False)
class ChatJob(Job):
    """A conversation to be answered; the answer is a `ChatAnswer`."""

    conversation: Conversation
    max_new_tokens: int
    sampling: Sampling
    on_text: OnText | None = None
    has_begun: bool = False  # some text was given
    num_prompt: int = 0  # tokens of the conversation with its image, once it is read

    @property
    def group(self) -> tuple[object, ...]:
        return ("chat",)

    @property
    def num_mask_pixels(self) -> int:
        return USUAL_MASKS * self.num_pixels


@dataclass(kw_only=True, eq=False)
class SegmentJob(Job):
    """A complex query; the answer is a `Segmentation`."""

    classes: tuple[str, ...]
    threshold: float | None = None

    @property
    def group(self) -> tuple[object, ...]:
        return ("segment", self.threshold)

    @property
    def num_mask_pixels(self) -> int:
        return len(self.classes) * self.num_pixels

    def check_size(self) -> None:
        """UserError for a query of too many classes, or whose masks would not fit into memory."""
        if len(self.classes) > MAX_CLASSES:
            raise UserError(
                f"{len(self.classes):,} classes at once, of at most {MAX_CLASSES:,}; ask for fewer"
            )
        if self.num_mask_pixels > MAX_MASK_PIXELS:
            height, width = self.image.shape[:2]
            raise UserError(
                f"{len(self.classes)} classes in an image of {height} x {width} pixels are too many at once; ask for "
                "fewer, or shrink the image"
            )


@dataclass(kw_only=True, eq=False)
class ThresholdJob(Job):
    """Decides again about the classes of an answer; the answer is a `Segmentation`."""

    found: Segmentation
    threshold: float | None = None

    @property
    def group(self) -> tuple[object, ...]:
        return ("threshold",)

    @property
    def num_mask_pixels(self) -> int:
        return len(self.found.names) * self.num_pixels
