"""A folder of this repository: config.json of model_type "lasagna", safetensors, tokenizer, processor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from model.checkpoints.layouts.base import ATTENTION, ReadOptions, check_size
from model.checkpoints.lazy import StoredWeights
from model.config import LasagnaConfig, check_stored
from model.huggingface import from_pretrained
from model.lasagna import LasagnaForConditionalGeneration

NAME = "LaSagnA folder"


def recognises(config: dict[str, Any]) -> bool:
    """See `Layout`."""
    return config.get("model_type") == "lasagna"


def read(folder: Path, options: ReadOptions) -> LasagnaForConditionalGeneration:
    """The whole model, its processor attached."""
    check_stored(folder)
    config = from_pretrained(LasagnaConfig, folder)
    check_size(LasagnaForConditionalGeneration, config, StoredWeights(folder).num_values, folder=folder)
    model = LasagnaForConditionalGeneration.from_pretrained(
        folder,
        dtype=options.dtype or "auto",
        attn_implementation=ATTENTION,
        **options.placement,
    )
    if not model.has_processor:
        raise FileNotFoundError(
            f"{folder} has no tokenizer or processor beside its weights; copy the whole folder"
        )
    return model
