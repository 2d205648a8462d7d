"""Which class serves which family of vision-language models, by the `model_type` of its config.json."""

from __future__ import annotations

from transformers import PreTrainedModel

from model.backbones.gemma import GemmaBackbone
from model.backbones.huggingface import HuggingFaceBackbone
from model.backbones.llava import LlavaBackbone
from model.backbones.recurrent import RecurrentBackbone
from model.config import LasagnaConfig
from model.errors import UserError

BACKBONES: dict[str, type[HuggingFaceBackbone]] = {
    "llava": LlavaBackbone,
    "qwen3_vl": HuggingFaceBackbone,
    "qwen2_5_vl": HuggingFaceBackbone,
    "internvl": HuggingFaceBackbone,
    "llava_onevision": HuggingFaceBackbone,
    "smolvlm": HuggingFaceBackbone,
    "idefics3": HuggingFaceBackbone,
    "gemma3": GemmaBackbone,
    "qwen3_5": RecurrentBackbone,
}


def build_backbone(vlm: PreTrainedModel, config: LasagnaConfig) -> HuggingFaceBackbone:
    """The backbone around a model without PEFT's wrapper."""
    kind = vlm.config.model_type
    if kind not in BACKBONES:
        raise UserError(f"unknown backbone {kind!r}; known: {', '.join(sorted(BACKBONES))}")
    return BACKBONES[kind](vlm, config)
