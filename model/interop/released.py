"""LaSagnA and LISA as their authors release them: SAM and projection inside an original LLaVA."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from model.interop.llava_v1 import COMPUTED, hugging_face_name, read_llava
from model.interop.parts import Parts, ReadOptions, read_json
from model.sam import sam_settings_from_state_dict
from model.weights import read_folder, without_prefix

if TYPE_CHECKING:
    from model.lasagna import LasagnaForConditionalGeneration

# Architecture -> the sequence format that the weights were trained with.
FORMATS = {"LaSagnAForCausalLM": "release", "LISAForCausalLM": "lisa"}
SAM_PREFIX = "model.visual_model."
PROJECTOR_PREFIX = "model.text_hidden_fcs.0."
PEFT_PREFIX = "base_model.model."  # their PEFT wraps the whole model, ours the language part


def recognises(config: dict[str, Any]) -> bool:
    return any(name in FORMATS for name in config.get("architectures") or [])


def read(folder: Path, options: ReadOptions) -> Parts:
    """Takes SAM and projection out and reads the rest as a LLaVA. The CLIP tower is not inside.

    Raises:
        ValueError: SAM or projection are missing.
    """
    config, weights = read_json(folder / "config.json"), read_folder(folder)
    sam = without_prefix(weights, SAM_PREFIX)
    projector = without_prefix(weights, PROJECTOR_PREFIX)
    if not sam or not projector:
        raise ValueError(
            f"{folder} says that it is a {config['architectures'][0]} but has no {SAM_PREFIX}* or "
            f"{PROJECTOR_PREFIX}* weights; pass the merged model, not a LoRA checkpoint"
        )
    rest = {k: v for k, v in weights.items() if not k.startswith((SAM_PREFIX, PROJECTOR_PREFIX))}
    parts = read_llava(folder, config, rest, options)
    parts.sam = (sam_settings_from_state_dict(sam), sam)
    parts.seg_projector = projector
    parts.format_name = next(FORMATS[name] for name in config["architectures"] if name in FORMATS)
    return parts


def is_training_state(weights: dict[str, Tensor]) -> bool:
    """Whether the weights come from training with their code, LoRA not merged."""
    return any(name.startswith(PEFT_PREFIX) for name in weights)


def training_names(weights: dict[str, Tensor], model: LasagnaForConditionalGeneration) -> dict[str, Tensor]:
    """Weights of their training under the names of ours, without the CLIP tower, which never trains.

    Their vocabulary has no `<image>`: the model's own row, the last one, completes it.
    """
    renamed = {}
    for name, value in weights.items():
        name = name.removeprefix(PEFT_PREFIX)
        if COMPUTED.search(name) or name.startswith("model.vision_tower."):
            continue
        if name.startswith(SAM_PREFIX):
            name = "sam." + name.removeprefix(SAM_PREFIX)
        elif name.startswith(PROJECTOR_PREFIX):
            name = "seg_projector." + name.removeprefix(PROJECTOR_PREFIX)
        else:
            name = "vlm.base_model.model." + with_base_layer(hugging_face_name(name), weights)
        renamed[name] = value
    matrices = {
        "vlm.base_model.model.model.language_model.embed_tokens.weight": model.get_input_embeddings(),
        "vlm.base_model.model.lm_head.weight": model.get_output_embeddings(),
    }
    for name, layer in matrices.items():
        if name in renamed and len(renamed[name]) == model.config.image_token_id:
            renamed[name] = torch.cat([renamed[name], layer.weight[-1:].to(renamed[name])])
    return renamed


def with_base_layer(name: str, weights: dict[str, Tensor]) -> str:
    """Newer PEFT keeps the adapted weight itself under `base_layer`."""
    layer, _, kind = name.rpartition(".")
    adapted = f"{PEFT_PREFIX}{layer.replace('language_model.', '', 1)}.lora_A.default.weight"
    return f"{layer}.base_layer.{kind}" if adapted in weights else name
