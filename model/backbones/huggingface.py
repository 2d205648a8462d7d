"""Any image-text-to-text model of Hugging Face transformers as the backbone.

All of them have the same handles: `vlm.get_decoder()` (language model with its final norm), `vlm.lm_head`, and
`vlm.model.get_image_features(...)`. What differs between families is data: the number of tokens of an image, whether
positions have one axis or three, whether embeddings and head are tied.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, PreTrainedModel

from model.backbones.base import ImageFeatures
from model.config import LasagnaConfig
from model.text.packing import packed_attention, packed_blocks
from model.text.placeholder import Placeholder


class HuggingFaceBackbone:
    """See `Backbone`; it holds no weights of its own."""

    can_pack = True
    can_crop = True
    attentions: tuple[str, ...] = ("sdpa", "eager", "flash_attention_2", "flex_attention")

    def __init__(self, vlm: PreTrainedModel, config: LasagnaConfig) -> None:
        """`vlm` without its PEFT wrapper: adapters sit inside its layers."""
        self.vlm, self.config = vlm, config

    @property
    def language_model(self) -> nn.Module:
        """Embeddings, layers and final norm."""
        return self.vlm.get_decoder()

    @property
    def lm_head(self) -> nn.Module:
        return self.vlm.lm_head

    @property
    def vision_tower(self) -> nn.Module:
        """See `Backbone`; families call it differently."""
        names = ("vision_tower", "visual", "vision_model")
        return next(getattr(self.vlm.model, name) for name in names if hasattr(self.vlm.model, name))

    @property
    def num_logits(self) -> int:
        """The tokens that can be written."""
        return self.config.num_logits

    @property
    def attention(self) -> str:
        """What the language model computes attention with."""
        return self.language_model.config._attn_implementation

    def attend_with(self, name: str) -> None:
        """See `Backbone`."""
        if name == "flex_attention":
            # Some classes of transformers refuse it, though their attention goes through the common interface.
            type(self.language_model)._supports_flex_attn = True
        self.language_model.set_attn_implementation(name)

    def lora_pattern(self, names: Sequence[str]) -> str:
        """See `Backbone`: below the decoder's own name, as vision towers have layers called q_proj too."""
        prefix = next(name for name, module in self.vlm.named_modules() if module is self.language_model)
        return rf".*{re.escape(prefix)}\.layers\.\d+\..*\.({'|'.join(names)})"

    @torch.no_grad()
    def encode(self, vlm_images: Mapping[str, Tensor], placeholders: Sequence[Placeholder]) -> ImageFeatures:
        """See `Backbone`."""
        config, counts = self.vlm.config, [one.num_image_tokens for one in placeholders]
        arguments: dict[str, Any] = dict(vlm_images)
        arguments["pixel_values"] = arguments["pixel_values"].to(self.vlm.dtype)
        if hasattr(config, "vision_feature_layer"):
            arguments["vision_feature_layer"] = config.vision_feature_layer
            arguments["vision_feature_select_strategy"] = config.vision_feature_select_strategy
        found = self.vlm.model.get_image_features(**arguments)
        layers = [
            self._flat(layer).split(counts) for layer in getattr(found, "deepstack_features", None) or ()
        ]
        return ImageFeatures(
            tokens=self._flat(found.pooler_output).split(counts),
            deep=tuple(zip(*layers, strict=True)),
        )

    def _flat(self, features: Tensor | Sequence[Tensor]) -> Tensor:
        """Features of all images, one after the other: (sum of n_i, hidden_dim)."""
        together = features if isinstance(features, Tensor) else torch.cat(list(features))
        return together.reshape(-1, together.shape[-1])

    def embed(self, input_ids: Tensor, features: ImageFeatures | None = None) -> Tensor:
        """See `Backbone`."""
        embeddings = self.vlm.get_input_embeddings()(input_ids)
        if features is None:
            return embeddings
        is_image = (input_ids == self.config.image_token_id).unsqueeze(-1)
        return embeddings.masked_scatter(is_image, torch.cat(features.tokens).to(embeddings.dtype))

    def deep(self, input_ids: Tensor, features: ImageFeatures) -> dict[str, Any]:
        """See `Backbone`."""
        if not features.deep:
            return {}
        layers = [torch.cat(layer) for layer in zip(*features.deep, strict=True)]
        return {
            "visual_pos_masks": input_ids == self.config.image_token_id,
            "deepstack_visual_embeds": layers,
        }

    def needs_prefix(self, features: ImageFeatures) -> bool:
        """Whether the pass over an image takes more than its embeddings, so that the image goes first, alone."""
        return bool(features.deep)

    def packed_mask(self, input_ids: Tensor, segment_ids: Tensor, position_ids: Tensor) -> Any:
        """The attention mask of packed rows; see model/text/packing.py. All arguments (N, T)."""
        return (
            packed_blocks(segment_ids)
            if self.attention == "flex_attention"
            else packed_attention(segment_ids)
        )

    def states(
        self,
        embeddings: Tensor,
        attention_mask: Any,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        deep: Mapping[str, Any] | None = None,
    ) -> Tensor:
        """See `Backbone`."""
        return self.language_model(
            inputs_embeds=embeddings,
            attention_mask=self._as_taken(attention_mask, embeddings.dtype),
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=cache is not None,
            **(deep or {}),
        ).last_hidden_state

    def _as_taken(self, mask: Any, dtype: torch.dtype) -> Any:
        """A mask, or those of several kinds of layers, as the attention takes it: eager attention adds it."""
        if isinstance(mask, dict):
            return {kind: self._as_taken(each, dtype) for kind, each in mask.items()}
        is_of_pairs = isinstance(mask, Tensor) and mask.ndim == 4  # of queries and keys, not of columns
        if self.attention != "eager" or not is_of_pairs or mask.dtype != torch.bool:
            return mask
        return torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, torch.finfo(dtype).min)

    def new_cache(self) -> Cache:
        """See `Backbone`."""
        return DynamicCache()

    def select_rows(self, cache: Cache, rows: Tensor) -> None:
        """See `Backbone`."""
        cache.batch_select_indices(rows)

    def logits(self, states: Tensor) -> Tensor:
        """See `Backbone`: the image token is one of the vocabulary, and its logit is -inf."""
        logits = self.lm_head(states)
        logits[..., self.config.image_token_id] = float("-inf")
        return logits
