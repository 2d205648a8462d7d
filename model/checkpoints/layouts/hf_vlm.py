"""Image-text-to-text models of Hugging Face other than LLaVA: Qwen3-VL, InternVL, SmolVLM and their like."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from model.backbones.base_processor import read_processor
from model.backbones.build import BACKBONES
from model.checkpoints.layouts.base import Parts, ReadOptions, load_vlm
from model.huggingface import from_pretrained
from model.text.templates import OWN_PROMPT

NAME = "Hugging Face image-text-to-text model"


def recognises(config: dict[str, Any]) -> bool:
    """See `Layout`."""
    return config.get("model_type") in BACKBONES and config["model_type"] != "llava"


def read(folder: Path, options: ReadOptions) -> Parts:
    """The model with its own vision tower and processor."""
    base_processor = read_processor(folder)
    config = from_pretrained(AutoConfig, folder)
    kind: type[PreTrainedModel] = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)]
    vlm = load_vlm(kind, config, folder, options)
    return Parts(folder=folder, vlm=vlm, base_processor=base_processor, prompt=OWN_PROMPT)
