"""Gemma 3 as the backbone: image tokens see each other in both directions, and most layers look back a window only.

The library makes such masks from columns, which is right for one row from its beginning. Packed rows, and rows with
padding between a cached prefix and their own tokens, need them made from positions; here all masks are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from model.backbones.base import ImageFeatures
from model.backbones.huggingface import HuggingFaceBackbone
from model.text.packing import packed_attention


class GemmaBackbone(HuggingFaceBackbone):
    """See `Backbone`."""

    attentions = ("sdpa", "eager")  # those that take any mask

    def needs_prefix(self, features: ImageFeatures) -> bool:
        """See `HuggingFaceBackbone`: the pass over an image has a mask of its own."""
        return True

    def deep(self, input_ids: Tensor, features: ImageFeatures) -> dict[str, Any]:
        """See `Backbone`: which tokens are those of the image, (N, T)."""
        return {"is_image": input_ids == self.config.image_token_id}

    def packed_mask(self, input_ids: Tensor, segment_ids: Tensor, position_ids: Tensor) -> Any:
        """See `HuggingFaceBackbone`."""
        is_image = input_ids == self.config.image_token_id
        seen = packed_attention(segment_ids)[:, 0] | (is_image[:, :, None] & is_image[:, None, :])
        return self._both(seen, position_ids, position_ids)

    def states(
        self,
        embeddings: Tensor,
        attention_mask: Any,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        deep: Mapping[str, Any] | None = None,
    ) -> Tensor:
        """See `Backbone`."""
        if not isinstance(attention_mask, dict):
            is_image = (deep or {}).get("is_image")
            attention_mask = self._masks(embeddings, attention_mask, cache, is_image)
        return super().states(embeddings, attention_mask, position_ids, cache)

    def _masks(
        self, embeddings: Tensor, mask: Tensor | None, cache: Cache | None, is_image: Tensor | None
    ) -> dict[str, Tensor]:
        """Masks of the last T of the columns that `mask` (N, columns) tells padding of."""
        num_rows, length = embeddings.shape[:2]
        if mask is None:
            cached = cache.get_seq_length() if cache is not None else 0
            mask = torch.ones(num_rows, cached + length, dtype=torch.long, device=embeddings.device)
        column = torch.arange(mask.shape[1], device=mask.device)
        query = column[-length:]
        # A query at padding sees itself: without any key, its state would not be a number.
        seen = (column <= query[:, None]) & (mask.bool()[:, None, :] | (column == query[:, None]))
        if is_image is not None:
            keys = torch.zeros_like(mask, dtype=torch.bool)
            keys[:, -length:] = is_image
            seen = seen | (is_image[:, :, None] & keys[:, None, :])
        positions = mask.cumsum(-1) - 1
        return self._both(seen, positions[:, -length:], positions)

    def _both(self, seen: Tensor, query: Tensor, key: Tensor) -> dict[str, Tensor]:
        """Masks (N, 1, T, columns) of both kinds of layers; positions `query` (N, T) and `key` (N, columns)."""
        near = query[:, :, None] - key[:, None, :] < self.language_model.config.sliding_window
        return {
            "full_attention": seen.unsqueeze(1),
            "sliding_attention": (seen & near).unsqueeze(1),
        }
