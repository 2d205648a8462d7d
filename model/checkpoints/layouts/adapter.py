"""A plain PEFT folder: adapter_config.json and adapter_model.safetensors (or .bin), LoRA beside a base.

Read here rather than by PEFT, which initialises adapters at random when their names do not fit. LoRA folders of
LLaVA's authors have `non_lora_trainables.bin` beside them.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from torch import Tensor

from model.checkpoints.weights import read_weight_file
from model.errors import UserError
from model.files import read_json

CONFIG_FILE = "adapter_config.json"
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
OTHER_WEIGHTS = "non_lora_trainables.bin"
PREFIX = "base_model.model."
# Prefixes of Hugging Face's LLaVA before transformers 4.52, and as they are now.
OLD_NAMES = (
    ("language_model.model.", "model.language_model."),
    ("language_model.lm_head.", "lm_head."),
    ("multi_modal_projector.", "model.multi_modal_projector."),
)
# Entries of adapter_config.json that do not change what the weights mean, or that the names of the weights show.
FREE = {
    "peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "inference_mode", "r",
    "target_modules", "exclude_modules", "lora_alpha", "lora_dropout", "use_rslora", "layers_to_transform",
    "layers_pattern", "modules_to_save", "megatron_core", "qalora_group_size", "eva_config", "runtime_config",
}  # fmt: skip
# Every other entry must be off (None, False, empty) or one of these.
NEUTRAL = {
    "bias": ("none",),
    "revision": ("main",),
    "init_lora_weights": (True, "gaussian", "eva", "orthogonal"),
}
OFF: tuple[Any, ...] = (None, False, "", [], {})
CURES = {
    "init_lora_weights": "it changed the base when the adapter was made: load base and adapter with PEFT and write a "
    "plain one, model.save_pretrained(FOLDER, path_initial_model_for_weight_conversion=INITIAL_ADAPTER)"
}
CURE = "merge it with PEFT, PeftModel.from_pretrained(BASE, FOLDER).merge_and_unload(), and pass the merged model"


def is_adapter(folder: Path) -> bool:
    """Whether the folder is one of PEFT."""
    return (folder / CONFIG_FILE).is_file()


def describe(path: Path, tag: str | None = None) -> str | None:
    """Words for messages and the log; None for something else. A tag means nothing here."""
    return "PEFT adapter" if is_adapter(path) else None


def run_settings(folder: Path) -> dict[str, Any]:
    """The same as a run's settings: the model it started from, and LoRA's alpha for a scale of alpha / rank."""
    config = read_json(folder / CONFIG_FILE)
    alpha = config.get("lora_alpha", 8)
    if config.get("use_rslora"):  # rank-stabilised: the product is divided by the root of the rank
        alpha *= math.sqrt(config["r"])
    return {"version": config.get("base_model_name_or_path"), "lora_alpha": alpha}


def read(folder: Path, tag: str | None = None) -> dict[str, Tensor]:
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
    strange = [name for name, value in config.items() if not is_neutral(name, value)]
    if strange:
        entries = ", ".join(f"{name}={config[name]!r}" for name in strange)
        raise UserError(
            f"{folder}/{CONFIG_FILE} has {entries}, which is not supported; {CURES.get(strange[0], CURE)}"
        )
    path = next((folder / name for name in ADAPTER_FILES if (folder / name).is_file()), None)
    if path is None:
        raise FileNotFoundError(f"{folder} has no adapter weights; looked for {', '.join(ADAPTER_FILES)}")
    weights = read_weight_file(path)
    if (folder / OTHER_WEIGHTS).is_file():
        weights |= read_weight_file(folder / OTHER_WEIGHTS)
    return {training_name(name): value for name, value in weights.items()}


def is_neutral(name: str, value: Any) -> bool:
    """Whether an entry of adapter_config.json is that of a plain LoRA; unknown entries must be off."""
    return name in FREE or any(value is fine or value == fine for fine in (*OFF, *NEUTRAL.get(name, ())))


def training_name(name: str) -> str:
    """The name, in training, of a saved weight: PEFT leaves out the adapter's name when it saves."""
    inside = name.removeprefix(PREFIX)
    for old, new in OLD_NAMES:
        if inside.startswith(old):
            inside = new + inside.removeprefix(old)
    return PREFIX + re.sub(r"\.(lora_[AB])\.(?:default\.)?weight$", r".\1.default.weight", inside)
