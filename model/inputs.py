"""The model's inputs as named tensors with their shapes: B images, and N rows of T tokens about them.

The model is called as Hugging Face models are, `model(**inputs.fields())`; other code reads the fields by name.
Positions of [SEG] and of labels, sizes, and the image of each row are computed on the CPU when the batch is made:
computed on a GPU, each would synchronize the host with the device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor

from model.text.placeholder import Placeholder
from model.token_grid import Size, TokenGrid

Levels = tuple[
    Tensor, ...
]  # features of B images by a mask decoder: (B, channels, height, width), finest first


@dataclass(frozen=True, kw_only=True, eq=False)
class TensorFields:
    """Base of dataclasses of tensors, tuples and dicts of tensors; plain numbers stay on the CPU."""

    def fields(self) -> dict[str, Any]:
        """The fields by name, tensors not copied, as keyword arguments."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def to(self, device: torch.device | str) -> Self:
        """A copy with the tensors on `device`; copies from pinned memory are asynchronous."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Self:
        """A copy in pinned (page-locked) memory."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, function: Callable[[Tensor], Tensor]) -> Self:
        changed: dict[str, Any] = {}
        for name, value in self.fields().items():
            if isinstance(value, Tensor):
                changed[name] = function(value)
            elif isinstance(value, tuple) and value and isinstance(value[0], Tensor):
                changed[name] = tuple(function(item) for item in value)
            elif isinstance(value, dict):
                changed[name] = {key: function(item) for key, item in value.items()}
        return replace(self, **changed)


@dataclass(frozen=True, kw_only=True, eq=False)
class RowInputs(TensorFields):
    """Inputs of the language model."""

    input_ids: Tensor  # (N, T) int64, one `<image>` token for each image feature
    attention_mask: Tensor  # (N, T) int64, 0 at padding
    labels: Tensor | None = None  # (N, T) int64, -100 where there is no loss
    # Where rows hold several conversations; see model/text/packing.py.
    position_ids: Tensor | None = None  # (N, T) int64, or (3, N, T) of models with three axes
    segment_ids: Tensor | None = None  # (N, T) int64


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageInputs(TensorFields):
    """Inputs of both image encoders: the arguments of `encode_images`.

    The model takes either `sam_images` or `sam_embeddings`, of all images. With a cache of SAM's embeddings a batch
    of the loader holds some images in the one and the rest in the other, until `SamCache.complete`.
    """

    vlm_images: dict[str, Tensor]  # of `ImageReader.collate`; LLaVA: "clip_images" (B, 3, S, S) uint8
    placeholders: tuple[Placeholder, ...]  # B, what stands for each image in the text
    token_grids: tuple[TokenGrid, ...]  # B, where its tokens lie
    sam_images: Tensor | None = None  # (B, 3, h, w) uint8, resized, zeros at the right and the bottom
    sam_embeddings: Levels | None = None  # as the mask decoder's `encode` gives them
    resized_sizes: tuple[Size, ...]  # B, of each image within `sam_images`
    original_sizes: tuple[Size, ...]  # B, of each image as it was

    @property
    def num_images(self) -> int:
        """B."""
        return len(self.original_sizes)


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelInputs(RowInputs, ImageInputs):
    """One batch: the arguments of `LasagnaForConditionalGeneration.forward`."""

    image_of_row: tuple[int, ...]  # N
    # The n [SEG]s, ordered by image, then row, then column.
    seg_rows: Tensor  # (n,) int64
    seg_columns: Tensor  # (n,) int64
    seg_images: tuple[int, ...]  # n
    # Of the tokens of each image's grid, in one of its rows: row * T + column.
    grid_places: tuple[Tensor, ...]  # B of (grid rows * columns,) int64
    gt_masks: tuple[Tensor, ...] | None = (
        None  # B of (n_i, height, width), in the order of the image's [SEG]s
    )
    # Positions of the tokens with a label; without them the model searches `labels`.
    learned_rows: Tensor | None = None  # (num_learned,) int64
    learned_columns: Tensor | None = None  # (num_learned,) int64
    # For a mask decoder that is prompted by the states of a name, see model/prompt_states.py.
    seg_firsts: Tensor | None = None  # (n,) int64, columns where what is said about each [SEG] begins
    # Some of the [NEG]s, ordered as the [SEG]s: of each image as many as it has [SEG]s, at least one.
    neg_rows: Tensor | None = None  # (m,) int64
    neg_columns: Tensor | None = None  # (m,) int64
    neg_firsts: Tensor | None = None  # (m,) int64
    neg_images: tuple[int, ...] = ()  # m
