"""The model as evaluation sees it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from model.config import LasagnaConfig
from model.outputs import ChatAnswer, EncodedImage, LasagnaOutput, Segmentation
from model.processor import LasagnaProcessor
from model.text.conversation import Conversation
from model.text.special_tokens import Text


class SegmentationModel(Protocol):
    """What evaluation asks of a model; `LasagnaForConditionalGeneration` has it.

    The methods are those of `model/generation/inference.py`, where arguments and shapes are described.
    """

    training: bool

    @property
    def config(self) -> LasagnaConfig: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def can_pack_rows(self) -> bool: ...

    def encode_batch(
        self, images: Sequence[np.ndarray | EncodedImage], *, processor: LasagnaProcessor | None = None
    ) -> list[EncodedImage]: ...

    def segment_batch(
        self,
        images: Sequence[np.ndarray | EncodedImage],
        classes: Sequence[Sequence[str]],
        *,
        processor: LasagnaProcessor | None = None,
        presence_threshold: float | None = None,
        rethreshold: float | None = None,
        classes_per_query: int | None = None,
        match_distance: float = ...,
        min_score: float = ...,
    ) -> list[Segmentation]: ...

    def generate_batch(
        self,
        images: Sequence[np.ndarray | EncodedImage],
        conversations: Sequence[Conversation],
        *,
        image_of_row: Sequence[int] | None = None,
        processor: LasagnaProcessor | None = None,
        max_new_tokens: int = ...,
    ) -> list[ChatAnswer]: ...

    def target_probabilities(
        self,
        images: Sequence[np.ndarray | EncodedImage],
        queries: Sequence[Text],
        *,
        image_of_row: Sequence[int] | None = None,
        processor: LasagnaProcessor | None = None,
    ) -> Sequence[float | None]: ...

    def __call__(self, **inputs: Any) -> LasagnaOutput:
        """Teacher forcing: the masks of the [SEG] in answers that are given."""

    def state_dict(self) -> dict[str, Tensor]: ...

    def eval(self) -> Any: ...

    def train(self, mode: bool = True) -> Any: ...


@contextmanager
def evaluation_mode(model: SegmentationModel) -> Iterator[None]:
    """No dropout, no gradients; afterwards the model is as it was.

    no_grad, not inference_mode: what the model computes once and keeps must stay usable for training.
    """
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)
