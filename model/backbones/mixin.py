"""The methods of the whole model that its backbone does, with the rows of new tokens where these train alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

from model.backbones.base import ImageFeatures
from model.backbones.build import build_backbone
from model.backbones.huggingface import HuggingFaceBackbone
from model.backbones.token_rows import TokenRows
from model.config import LasagnaConfig
from model.text.placeholder import Placeholder


class BackboneMixin(nn.Module):
    """Methods of a model whose `vlm` is a Hugging Face image-text-to-text model; PEFT may wrap it."""

    config: LasagnaConfig
    vlm: PreTrainedModel
    token_rows: TokenRows | None

    @property
    def base_vlm(self) -> PreTrainedModel:
        """The vision-language model without its PEFT wrapper; adapters sit inside its layers."""
        return self.vlm.get_base_model() if hasattr(self.vlm, "get_base_model") else self.vlm

    @property
    def backbone(self) -> HuggingFaceBackbone:
        """See `Backbone`."""
        return build_backbone(self.base_vlm, self.config)

    @property
    def can_pack_rows(self) -> bool:
        """Whether the attention takes a mask of its own for each row; flash attention's kernels do not."""
        return self.backbone.can_pack and self.attention in ("sdpa", "eager", "flex_attention")

    @property
    def attention(self) -> str:
        """What the language model computes attention with."""
        return self.backbone.attention

    def get_input_embeddings(self) -> nn.Module:
        return self.base_vlm.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        return self.base_vlm.get_output_embeddings()

    def set_gradient_checkpointing(self, on: bool) -> None:
        """Whether the language model's layers keep their inputs only, and run once more in backward."""
        language = self.backbone.language_model
        # transformers 5.23 calls it activation checkpointing, older ones gradient checkpointing.
        kind = "activation" if hasattr(language, "activation_checkpointing_enable") else "gradient"
        if on:
            getattr(language, f"{kind}_checkpointing_enable")({"use_reentrant": False})
        else:
            getattr(language, f"{kind}_checkpointing_disable")()

    def image_features(
        self, vlm_images: Mapping[str, Tensor], placeholders: Sequence[Placeholder] = ()
    ) -> ImageFeatures:
        """Features of B images for the language model; both are fields of `ImageInputs`, LLaVA needs the first."""
        return self.backbone.encode(vlm_images, placeholders)

    def embed(self, input_ids: Tensor, features: ImageFeatures | None = None) -> Tensor:
        """Token embeddings (N, T, hidden_dim), image tokens replaced by features, one image a row."""
        embeddings = self.backbone.embed(input_ids, features)
        return embeddings if self.token_rows is None else self.token_rows(input_ids, embeddings=embeddings)

    def language_states(
        self,
        embeddings: Tensor,
        attention_mask: Any,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        deep: Mapping[str, Any] | None = None,
    ) -> Tensor:
        """Last hidden states (N, T, hidden_dim) of the language model; `cache` is read and extended.

        `deep` is what `Backbone.deep` gives for embeddings with an image.
        """
        return self.backbone.states(embeddings, attention_mask, position_ids, cache, deep)

    def text_logits(self, states: Tensor) -> Tensor:
        """(..., hidden_dim) -> (..., number of tokens that can be written); the image token is none of them."""
        logits = self.backbone.logits(states)
        return logits if self.token_rows is None else self.token_rows(states, logits=logits)
