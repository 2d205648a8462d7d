"""The CLIP tower of an original LLaVA: in a folder of its own, or inside the checkpoint."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import CLIPVisionConfig

from model.checkpoints.layouts.base import ReadOptions
from model.checkpoints.weights import read_folder, without_prefix
from model.errors import UserError
from model.files import read_json
from model.folders import local_folder
from model.huggingface import from_pretrained

TOWER_PREFIX = "model.vision_tower.vision_tower.vision_model."  # in an original LLaVA
TOWER_FOLDER = "vision_tower"  # where our export puts the tower, in the model's folder
TOWER_WEIGHT_PREFIX = "vision_model."  # of the weights in a published tower's folder
COMPUTED = "position_ids"  # a buffer that older versions of transformers stored


def read_tower(
    folder: Path, config: dict[str, Any], weights: dict[str, Tensor], options: ReadOptions
) -> tuple[dict[str, Tensor], CLIPVisionConfig, dict[str, Any]]:
    """The CLIP tower: weights to add to the checkpoint's, config, and image processor settings.

    The folder is the one given, else the one that the checkpoint's config names. Weights of a tower inside the
    checkpoint, which may have been fine-tuned, win over the folder's.
    """
    inside = {name: value for name, value in weights.items() if name.startswith(TOWER_PREFIX)}
    try:
        tower = tower_folder(folder, config, options, fetch=not inside)
    except FileNotFoundError:
        if not inside or options.vision_tower:
            raise
        return {}, vision_config_of(inside), {}
    vision_config = read_vision_config(tower)
    added = {}
    if not inside:
        stored = read_folder(tower)
        # Newer versions of transformers store the tower without its prefix; a whole CLIP has a text side too.
        stored = without_prefix(stored, TOWER_WEIGHT_PREFIX) or stored
        added = {TOWER_PREFIX + key: value for key, value in stored.items() if not key.endswith(COMPUTED)}
    return added, vision_config, read_json(tower / "preprocessor_config.json")


def tower_folder(folder: Path, config: dict[str, Any], options: ReadOptions, *, fetch: bool = True) -> Path:
    """The folder of the CLIP tower: the one given, else the one that the checkpoint holds, has beside it, or names.

    Raises:
        FileNotFoundError: there is no such folder, and no such repository on the hub.
    """
    if options.vision_tower:
        return local_folder(options.vision_tower, flag="--vision_tower")
    name = config.get("mm_vision_tower") or config.get("vision_tower")
    for place in (folder / TOWER_FOLDER, folder.parent / (name or TOWER_FOLDER)):
        if (place / "config.json").is_file():
            return place
    if not name:
        raise FileNotFoundError(f"{folder} does not name its CLIP tower; pass --vision_tower FOLDER")
    if not fetch and not Path(name).is_dir():
        raise FileNotFoundError(f"{folder}/config.json names {name}, which is not here")
    try:
        return local_folder(name, flag="the CLIP tower")
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{error}; {folder}/config.json names it. Pass --vision_tower FOLDER"
        ) from error


def read_vision_config(tower: Path) -> CLIPVisionConfig:
    """The config of a CLIP, whole or its vision side alone.

    Raises:
        ValueError: the folder is something else; stock loading would take default sizes.
    """
    kind = read_json(tower / "config.json").get("model_type")
    if kind not in ("clip", "clip_vision_model"):
        raise UserError(
            f"--vision_tower {tower} is not a CLIP: its config.json has model_type {kind!r}; pass the folder of "
            "openai/clip-vit-large-patch14 (or -336), the tower that this LLaVA was trained with"
        )
    return from_pretrained(CLIPVisionConfig, tower)


def vision_config_of(weights: dict[str, Tensor]) -> CLIPVisionConfig:
    """Sizes of the tower inside a checkpoint; every published CLIP has heads of 64 and quick_gelu."""
    weights = without_prefix(weights, TOWER_PREFIX)
    patches = weights["embeddings.patch_embedding.weight"]  # (hidden, 3, patch, patch)
    num_positions = len(weights["embeddings.position_embedding.weight"])  # patches and the class token
    layers = {name.split(".")[2] for name in weights if name.startswith("encoder.layers.")}
    return CLIPVisionConfig(
        hidden_size=patches.shape[0],
        intermediate_size=len(weights["encoder.layers.0.mlp.fc1.weight"]),
        num_hidden_layers=len(layers),
        num_attention_heads=max(patches.shape[0] // 64, 1),
        image_size=math.isqrt(num_positions - 1) * patches.shape[-1],
        patch_size=patches.shape[-1],
    )
