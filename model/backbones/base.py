"""What a vision-language model must offer to be the backbone: images and tokens in, hidden states and logits out.

Two objects: an `ImageReader` belongs to the processor and works on the CPU, in the loader's workers; a `Backbone`
belongs to the model and works on its device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import torch
from torch import Tensor, nn
from transformers import Cache

from model.text.placeholder import Placeholder
from model.text.templates import OwnChatTemplate
from model.token_grid import TokenGrid


@dataclass(frozen=True, kw_only=True)
class PreparedImage:
    """One image as the vision tower reads it, and what stands for it in the text."""

    pixels: dict[str, Tensor]
    placeholder: Placeholder
    grid: TokenGrid  # the tokens that cover the image once


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageFeatures:
    """What takes the place of the image tokens of B images, whose numbers of tokens may differ."""

    tokens: tuple[Tensor, ...]  # B of (n_i, hidden_dim)
    # Qwen3-VL's deepstack: features that are added to the states after its first layers, for each image.
    deep: tuple[tuple[Tensor, ...], ...] = ()  # B of num_layers of (n_i, hidden_dim); empty without

    def __len__(self) -> int:
        return len(self.tokens)

    def select(self, owners: Sequence[int]) -> Self:
        """The features of these images, in this order; an image may be taken several times."""
        deep = tuple(self.deep[owner] for owner in owners) if self.deep else ()
        return type(self)(tokens=tuple(self.tokens[owner] for owner in owners), deep=deep)

    @classmethod
    def join(cls, parts: Sequence[ImageFeatures]) -> ImageFeatures:
        """All images of several batches."""
        return cls(
            tokens=tuple(tokens for part in parts for tokens in part.tokens),
            deep=tuple(deep for part in parts for deep in part.deep),
        )

    def to(self, device: torch.device) -> Self:
        """The same on another device."""
        return type(self)(
            tokens=tuple(tokens.to(device) for tokens in self.tokens),
            deep=tuple(tuple(layer.to(device) for layer in layers) for layers in self.deep),
        )


class ImageReader(Protocol):
    """The processor's part: images as the vision tower reads them, and the text around them."""

    @property
    def image_token(self) -> str:
        """The token that features replace."""
        ...

    @property
    def placeholder(self) -> Placeholder | None:
        """What stands for every image; None where that depends on the image."""
        ...

    @property
    def template(self) -> OwnChatTemplate | None:
        """The only prompt of the model; None: one of PROMPTS."""
        ...

    def prepare(self, image: np.ndarray, *, fast: bool = False) -> PreparedImage:
        """One (height, width, 3) uint8 RGB image; `fast` allows faster resizing within two grey levels."""
        ...

    def collate(self, images: Sequence[PreparedImage]) -> dict[str, Tensor]:
        """The pixels of one or more images as `Backbone.encode` takes them."""
        ...

    def save(self, folder: Path) -> dict[str, Any]:
        """Writes the files that it is read from; returns its entries of processor_config.json."""
        ...

    def limit(self, min_tokens: int | None, max_tokens: int | None) -> None:
        """Changes how many tokens an image has, in place; None leaves a limit as it is.

        Raises:
            UserError: the family has no such setting, or the limits leave nothing.
        """
        ...


class Backbone(Protocol):
    """The model's part. Its weights are those of `vlm`, a Hugging Face image-text-to-text model."""

    language_model: nn.Module  # embeddings, layers and final norm
    lm_head: nn.Module
    vision_tower: nn.Module  # of `encode`, without LLaVA's projector and its like
    can_pack: bool  # whether attention takes a mask of its own for each row
    can_crop: bool  # whether a key-value cache can forget its last tokens
    attentions: tuple[str, ...]  # the values of --attn_implementation that it takes
    num_logits: int  # the tokens that can be written: rows of `text_logits`

    @property
    def attention(self) -> str:
        """What the language model computes attention with, one of `attentions`."""
        ...

    def attend_with(self, name: str) -> None:
        """Has the language model compute attention with one of `attentions`."""
        ...

    def lora_pattern(self, names: Sequence[str]) -> str:
        """Regular expression for the full names, in `vlm`, of the language model's layers called `names`."""
        ...

    def encode(self, vlm_images: Mapping[str, Tensor], placeholders: Sequence[Placeholder]) -> ImageFeatures:
        """Features of B images, whose pixels `ImageReader.collate` made; the tower is frozen: no gradients."""
        ...

    def embed(self, input_ids: Tensor, features: ImageFeatures | None = None) -> Tensor:
        """Token embeddings (N, T, hidden_dim), image tokens replaced by `features`, one image a row."""
        ...

    def deep(self, input_ids: Tensor, features: ImageFeatures) -> dict[str, Any]:
        """What `states` adds after its first layers, for the same arguments as `embed`; empty for most models."""
        ...

    def states(
        self,
        embeddings: Tensor,
        attention_mask: Any,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        deep: Mapping[str, Any] | None = None,
    ) -> Tensor:
        """Last hidden states (N, T, hidden_dim); positions (N, T) or (3, N, T); `cache` is read and extended."""
        ...

    def new_cache(self) -> Cache:
        """An empty key-value cache."""
        ...

    def select_rows(self, cache: Cache, rows: Tensor) -> None:
        """Keeps these rows of a cache, in this order, perhaps several times; in place."""
        ...

    def logits(self, states: Tensor) -> Tensor:
        """(..., hidden_dim) -> (..., num_logits); the image token cannot win."""
        ...
