"""LLaVA as the backbone: images and tokens in, hidden states and logits out.

The only part of `LasagnaForConditionalGeneration` that depends on the internals of Hugging Face's LLaVA.
"""

from __future__ import annotations

from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

from model.backbones.clip import clip_patches
from model.config import LasagnaConfig


class LlavaBackbone(nn.Module):
    """Methods of a model whose `vlm` is a Hugging Face LLaVA; PEFT may wrap it."""

    config: LasagnaConfig
    vlm: PreTrainedModel

    @property
    def llava(self) -> PreTrainedModel:
        """The vision-language model without its PEFT wrapper; adapters sit inside its layers."""
        return self.vlm.get_base_model() if hasattr(self.vlm, "get_base_model") else self.vlm

    @property
    def can_pack_rows(self) -> bool:
        """Whether the attention implementation takes a mask for each row, as packing needs; flash has none."""
        return self.attention in ("sdpa", "eager", "flex_attention")

    @property
    def attention(self) -> str:
        """The attention implementation of the language model."""
        return self.llava.config.text_config._attn_implementation

    def get_input_embeddings(self) -> nn.Module:
        return self.llava.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        return self.llava.get_output_embeddings()

    def set_gradient_checkpointing(self, on: bool) -> None:
        """Whether the language model's layers keep only their inputs and are recomputed in backward."""
        language = self.llava.model.language_model
        # transformers 5.23 calls it activation checkpointing, older ones gradient checkpointing.
        kind = "activation" if hasattr(language, "activation_checkpointing_enable") else "gradient"
        if on:
            getattr(language, f"{kind}_checkpointing_enable")({"use_reentrant": False})
        else:
            getattr(language, f"{kind}_checkpointing_disable")()

    def image_features(self, clip_images: Tensor) -> Tensor:
        """(B, 3, S, S) uint8 -> (B, num_image_tokens, hidden_dim): CLIP's patches after LLaVA's projector."""
        llava = self.llava.model
        return llava.multi_modal_projector(clip_patches(llava.vision_tower, clip_images, self.config))

    def embed(self, input_ids: Tensor, features: Tensor | None = None) -> Tensor:
        """Token embeddings (N, T, hidden_dim), `<image>` replaced by features (N, num_image_tokens, ...)."""
        embeddings = self.get_input_embeddings()(input_ids)
        if features is None:
            return embeddings
        is_image = (input_ids == self.config.image_token_id).unsqueeze(-1)
        return embeddings.masked_scatter(is_image, features.to(embeddings.dtype))

    def language_states(
        self,
        embeddings: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """Last hidden states (N, T, hidden_dim) of the language model; `cache` is read and extended."""
        return self.llava.model.language_model(
            inputs_embeds=embeddings,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=cache is not None,
        ).last_hidden_state

    def text_logits(self, states: Tensor) -> Tensor:
        """(..., hidden_dim) -> (..., image_token_id): `<image>`, the vocabulary's last row, is cut off."""
        return self.llava.lm_head(states)[..., : self.config.num_logits]
