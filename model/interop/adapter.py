"""A plain PEFT folder: adapter_config.json and adapter_model.safetensors (or .bin), LoRA beside a base.

Read here rather than by PEFT, which starts adapters anew when their names do not fit. LLaVA's own LoRA folders
have `non_lora_trainables.bin` beside it.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from torch import Tensor

from model.errors import UserError
from model.files import read_json
from model.weights import read_weight_file

CONFIG_FILE = "adapter_config.json"
WEIGHT_FILES = ("adapter_model.safetensors", "adapter_model.bin")
OTHER_WEIGHTS = "non_lora_trainables.bin"
PREFIX = "base_model.model."
# Prefixes of Hugging Face's LLaVA before transformers 4.52, and as they are now.
OLD_NAMES = (
    ("language_model.model.", "model.language_model."),
    ("language_model.lm_head.", "lm_head."),
    ("multi_modal_projector.", "model.multi_modal_projector."),
)
# Entries of adapter_config.json that would change what the weights mean, and their neutral values.
NEUTRAL = {"use_dora": (None, False), "rank_pattern": (None, {}), "alpha_pattern": (None, {}), "bias": (None, "none"),
           "fan_in_fan_out": (None, False), "lora_bias": (None, False)}  # fmt: skip


def is_adapter(folder: Path) -> bool:
    return (folder / CONFIG_FILE).is_file()


def run_settings(folder: Path) -> dict[str, Any]:
    """What a run's settings would say: the model it started from, and LoRA's alpha for a scale of alpha / rank."""
    config = read_json(folder / CONFIG_FILE)
    alpha = config.get("lora_alpha", 8)
    if config.get("use_rslora"):  # rank-stabilised: the product is divided by the root of the rank
        alpha *= math.sqrt(config["r"])
    return {"version": config.get("base_model_name_or_path"), "lora_alpha": alpha}


def read_adapter(folder: Path) -> dict[str, Tensor]:
    """Weights under the names they have in a model that trains.

    Raises:
        FileNotFoundError: the folder has no weights.
        ValueError: it is no LoRA, or one of a kind that is not supported.
    """
    config = read_json(folder / CONFIG_FILE)
    if config.get("peft_type") != "LORA":
        raise UserError(
            f"{folder} is a PEFT adapter of type {config.get('peft_type')!r}; only LORA is supported"
        )
    strange = [f"{name}={config[name]!r}" for name, fine in NEUTRAL.items() if config.get(name) not in fine]
    if strange:
        raise UserError(
            f"{folder}/{CONFIG_FILE} has {', '.join(strange)}, which is not supported; merge it with PEFT first"
        )
    path = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if path is None:
        raise FileNotFoundError(f"{folder} has no adapter weights; looked for {', '.join(WEIGHT_FILES)}")
    weights = read_weight_file(path)
    if (folder / OTHER_WEIGHTS).is_file():
        weights |= read_weight_file(folder / OTHER_WEIGHTS)
    return {training_name(name): value for name, value in weights.items()}


def training_name(name: str) -> str:
    """A saved name as it is in a model that trains: PEFT leaves the adapter's own name out when it saves."""
    inside = name.removeprefix(PREFIX)
    for old, new in OLD_NAMES:
        if inside.startswith(old):
            inside = new + inside.removeprefix(old)
    return PREFIX + re.sub(r"\.(lora_[AB])\.(?:default\.)?weight$", r".\1.default.weight", inside)
