"""The frame of a model: everything but the layers of its language model, as a folder of the same layout.

The layers hold most of a model's bytes and have the same names in every layout. The frame is small enough to be
loaded by `load_model`, which knows the layouts.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedConfig

from model.backbones.build import BACKBONES
from model.checkpoints.layouts import llava_v1
from model.checkpoints.lazy import StoredWeights
from model.checkpoints.weights import weight_files
from model.checkpoints.write import require_space, write_shards
from model.config import LasagnaConfig
from model.files import read_json
from model.huggingface import from_pretrained
from model.lasagna import LasagnaForConditionalGeneration

# A weight of a language model's layer in the layouts of original LLaVA, Hugging Face (old, new) and ours.
LAYER_NAME = re.compile(
    r"(vlm\.)?(model\.(?P<part>language_model|text_model)|language_model\.model|model)\.(?P<rest>layers\.\d+\..+)"
)
PER_LAYER = (
    "num_hidden_layers",
    "layer_types",
)  # settings of the text model that depend on the layers
LARGEST_ITEM = 4  # bytes of a value on disk, at most


def write_frame(folder: Path, stored: StoredWeights, target: Path) -> None:
    """Writes a copy of a model's folder without the layers of its language model; other files are linked.

    A CLIP tower beside the folder is linked too, as config.json may name it relative to the folder.
    """
    target.mkdir(parents=True)
    layers = set(layer_names(stored).values())
    weights = {file.name for file in weight_files(folder)}
    for file in folder.iterdir():
        if file.name != "config.json" and file.name not in weights and not file.name.endswith(".index.json"):
            (target / file.name).symlink_to(file.resolve())
    content = read_json(folder / "config.json")
    tower = Path(content.get("mm_vision_tower") or content.get("vision_tower") or "/")
    if not tower.is_absolute() and ".." not in tower.parts and (folder.parent / tower).is_dir():
        (target.parent / tower).parent.mkdir(parents=True, exist_ok=True)
        (target.parent / tower).symlink_to((folder.parent / tower).resolve())
    text = text_section(content)
    text["num_hidden_layers"] = 0
    if "layer_types" in text:
        text["layer_types"] = []
    (target / "config.json").write_text(json.dumps(content), encoding="utf-8")
    kept = {
        name: shape.numel() * LARGEST_ITEM
        for name, shape in stored.shapes.items()
        if name not in layers and not is_computed(name)
    }
    write_shards(target, kept, stored.read)


def text_section(content: dict[str, Any]) -> dict[str, Any]:
    """The part of a config.json, of any layout, that holds the settings of the language model."""
    inner = content.get("vlm_config", content)
    return inner.get("text_config", inner)


def text_config_of(folder: Path) -> PreTrainedConfig:
    """The settings of a folder's language model."""
    content = read_json(folder / "config.json")
    is_other = content.get("model_type") in BACKBONES and content["model_type"] != "llava"
    if text_section(content) is content and not is_other:  # original LLaVA: one flat file
        return llava_v1.text_config(content, vocab_size=content["vocab_size"])
    config = from_pretrained(AutoConfig, folder)
    return getattr(config, "vlm_config", config).text_config


def is_computed(name: str) -> bool:
    """Whether the weight is a buffer that the model computes itself."""
    return llava_v1.COMPUTED.search(name) is not None


def layer_names(stored: StoredWeights) -> dict[str, str]:
    """Our name -> stored name of every weight of the language model's layers."""
    return {
        f"vlm.model.{found['part'] or 'language_model'}.{found['rest']}": name
        for name in stored.shapes
        if (found := LAYER_NAME.fullmatch(name)) and not is_computed(name)
    }


def full_config(frame: LasagnaForConditionalGeneration, text_config: PreTrainedConfig) -> LasagnaConfig:
    """The frame's configuration with the layers restored, as `save_pretrained` would write it."""
    config = frame.config
    for name in PER_LAYER:
        if hasattr(text_config, name):
            setattr(config.vlm_config.text_config, name, getattr(text_config, name))
    config.architectures = [type(frame).__name__]
    config.dtype = str(frame.dtype).removeprefix("torch.")
    return config


def check_space(target: Path, stored: StoredWeights, sam: str | None, dtype: torch.dtype | None) -> None:
    """Raises a UserError if the merged model and the copy of the frame do not fit on the disk."""
    layers = set(layer_names(stored).values())
    width = dtype.itemsize if dtype else LARGEST_ITEM
    total = sum(shape.numel() for shape in stored.shapes.values())
    frame = sum(shape.numel() for name, shape in stored.shapes.items() if name not in layers)
    place = Path(sam) if sam else None
    files = weight_files(place) if place and place.is_dir() else [place] if place and place.is_file() else []
    sam_bytes = sum(file.stat().st_size for file in files)
    require_space(target, total * width + frame * LARGEST_ITEM + sam_bytes)
