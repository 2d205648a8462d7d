"""LLaVA as the backbone: CLIP's patch features, `<image>` as the last row of the vocabulary.

CLIP's layers behind the last one that LLaVA reads are not run, and pixels are uint8 until they are on the device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from model.backbones.base import ImageFeatures
from model.backbones.clip import clip_patches
from model.backbones.huggingface import HuggingFaceBackbone
from model.text.placeholder import Placeholder


class LlavaBackbone(HuggingFaceBackbone):
    """See `Backbone`."""

    def lora_pattern(self, names: Sequence[str]) -> str:
        """See `Backbone`."""
        return rf".*language_model.*\.({'|'.join(names)})"

    def encode(self, vlm_images: Mapping[str, Tensor], placeholders: Sequence[Placeholder]) -> ImageFeatures:
        """See `Backbone`: CLIP's patches after LLaVA's projector; "clip_images" (B, 3, S, S) uint8."""
        llava = self.vlm.model
        patches = clip_patches(llava.vision_tower, vlm_images["clip_images"], self.config)
        patches = patches.to(next(llava.multi_modal_projector.parameters()).dtype)
        return ImageFeatures(tokens=llava.multi_modal_projector(patches).unbind(0))

    def logits(self, states: Tensor) -> Tensor:
        """See `Backbone`: `<image>`, the vocabulary's last row, is cut off."""
        return self.lm_head(states)[..., : self.config.num_logits]
