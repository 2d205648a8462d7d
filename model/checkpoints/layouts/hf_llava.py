"""LLaVA as Hugging Face transformers stores it, such as llava-1.5-7b-hf."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import LlavaConfig, LlavaForConditionalGeneration

from model.checkpoints.layouts.base import Parts, ReadOptions, load_vlm
from model.files import read_json
from model.huggingface import from_pretrained

NAME = "Hugging Face LLaVA"
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")


def recognises(config: dict[str, Any]) -> bool:
    """See `Layout`."""
    return config.get("model_type") == "llava" and "text_config" in config


def read(folder: Path, options: ReadOptions) -> Parts:
    """The model with its own vision tower."""
    config = from_pretrained(LlavaConfig, folder)
    vlm = load_vlm(LlavaForConditionalGeneration, config, folder, options)
    stored = [read_json(folder / name) for name in PROCESSOR_FILES]
    clip_processor: dict[str, Any] = next((s.get("image_processor", s) for s in stored if s), {})
    return Parts(
        folder=folder,
        vlm=vlm,
        clip_processor=clip_processor,
        image_aspect_ratio="pad" if clip_processor.get("do_pad") else "square",
    )
