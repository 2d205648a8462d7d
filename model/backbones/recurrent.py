"""Qwen3.5 as the backbone: three of four layers are recurrent (gated delta rule), the others attend.

A recurrent layer sees every token before it in its row, whatever a mask says: conversations cannot be packed, and
there may be no padding between a cached prefix and what follows. Its state cannot be taken back: a draft that was
wrong is run again on a copy of the cache (model/generation/decoding.py).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from transformers import Cache, DynamicCache

from model.backbones.huggingface import HuggingFaceBackbone

# Layers that do in a recurrent layer what q_proj and v_proj do in attention.
RECURRENT_LAYERS = ("in_proj_qkv", "in_proj_z", "out_proj")


class RecurrentBackbone(HuggingFaceBackbone):
    """See `Backbone`."""

    can_pack = False
    can_crop = False
    attentions = ("sdpa", "eager")

    def lora_pattern(self, names: Sequence[str]) -> str:
        """See `Backbone`; recurrent layers get adapters too."""
        return super().lora_pattern([*names, *RECURRENT_LAYERS])

    def new_cache(self) -> Cache:
        """See `Backbone`."""
        return DynamicCache(config=self.language_model.config)

    def select_rows(self, cache: Cache, rows: Tensor) -> None:
        """See `Backbone`."""
        cache.reorder_cache(rows)
