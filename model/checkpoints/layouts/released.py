"""LaSagnA and LISA as their authors release them: SAM and projection inside an original LLaVA.

The CLIP tower is not inside. Folders that `write_released` wrote also hold the tower (`vision_tower/`) and our
configuration and processor (`lasagna/`), which other tools ignore: reading them restores the exported model exactly.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from model.checkpoints.layouts.base import SETTINGS_FOLDER, Parts, ReadOptions
from model.checkpoints.layouts.llava_v1 import COMPUTED, hugging_face_name, read_llava
from model.checkpoints.weights import read_folder, without_prefix
from model.config import check_stored
from model.decoders.sam import sam_settings_from_state_dict
from model.errors import UserError
from model.files import read_json
from model.text.format import SequenceFormat
from model.text.tokenizer_files import load_tokenizer
from model.text.tokens import add_special_tokens

if TYPE_CHECKING:
    from model.lasagna import LasagnaForConditionalGeneration

NAME = "released LaSagnA or LISA"
# Architecture -> the sequence format that the weights were trained with.
FORMATS = {"LaSagnAForCausalLM": "release", "LISAForCausalLM": "lisa"}
SAM_PREFIX = "model.visual_model."
PROJECTOR_PREFIX = "model.text_hidden_fcs.0."
PEFT_PREFIX = "base_model.model."  # their PEFT wraps the whole model, ours the language part
# Prefixes of their names and of ours; the LLaVA in between has the names of `llava_v1`.
NAMES = ((SAM_PREFIX, "sam."), (PROJECTOR_PREFIX, "seg_projector."))


def recognises(config: dict[str, Any]) -> bool:
    """See `Layout`."""
    return any(name in FORMATS for name in config.get("architectures") or [])


def read(folder: Path, options: ReadOptions) -> Parts:
    """Takes SAM and projection out and reads the rest as a LLaVA.

    Raises:
        ValueError: SAM or projection are missing.
    """
    config, weights = read_json(folder / "config.json"), read_folder(folder)
    sam = without_prefix(weights, SAM_PREFIX)
    projector = without_prefix(weights, PROJECTOR_PREFIX)
    if not sam or not projector:
        raise UserError(
            f"{folder} says that it is a {config['architectures'][0]} but has no {SAM_PREFIX}* or "
            f"{PROJECTOR_PREFIX}* weights; pass the merged model, not a LoRA checkpoint"
        )
    rest = {k: v for k, v in weights.items() if not k.startswith((SAM_PREFIX, PROJECTOR_PREFIX))}
    parts = read_llava(folder, config, rest, options)
    parts.sam = (sam_settings_from_state_dict(sam), sam)
    parts.seg_projector = projector
    name = next(FORMATS[name] for name in config["architectures"] if name in FORMATS)
    parts.format = SequenceFormat.named(name)
    settings = folder / SETTINGS_FOLDER
    if (settings / "config.json").is_file():  # exported by `write_released`
        check_stored(settings)
        ours = read_json(settings / "config.json")
        parts.folder, parts.prompt = settings, ours.get("prompt")
        parts.format = SequenceFormat.from_dict(ours["sequence_format"])
        parts.num_all_classes = ours.get("num_all_classes")
    return parts


def is_training_state(weights: dict[str, Tensor]) -> bool:
    """Whether the weights come from training with their code, LoRA not merged."""
    return any(name.startswith(PEFT_PREFIX) for name in weights)


def training_format(weights: dict[str, Tensor], base: Path) -> SequenceFormat | None:
    """The sequence format of a training state: the one whose tokens, added to those of the base, fill its rows.

    Args:
        weights: as read; None is returned if they are of our training code, or adapters alone.
        base: folder of the model that training started from.

    Raises:
        ValueError: neither LaSagnA's tokens nor LISA's give that number.
    """
    embeddings = weights.get(PEFT_PREFIX + "model.embed_tokens.weight")
    if embeddings is None:
        return None
    counts = {}
    for name in FORMATS.values():
        tokenizer, format = load_tokenizer(base), SequenceFormat.named(name)
        add_special_tokens(tokenizer, format)
        counts[name] = len(tokenizer) - 1  # theirs has no `<image>`
        if counts[name] == len(embeddings):
            return format
    raise UserError(
        f"the training state has {len(embeddings)} tokens, but with those of a format {base} has {counts}; is "
        "--version the model that this run started from?"
    )


def training_names(weights: dict[str, Tensor], model: LasagnaForConditionalGeneration) -> dict[str, Tensor]:
    """Weights of their training under the names of ours, without the CLIP tower, which never trains.

    Their vocabulary has no `<image>`: the model's own row, the last one, completes it.
    """
    is_mlp = any(name.startswith(PEFT_PREFIX + "model.mm_projector.2.") for name in weights)
    renamed = {}
    for name, value in weights.items():
        name = name.removeprefix(PEFT_PREFIX)
        if COMPUTED.search(name) or name.startswith("model.vision_tower."):
            continue
        ours = next((o + name.removeprefix(theirs) for theirs, o in NAMES if name.startswith(theirs)), None)
        if ours is None:
            inside = hugging_face_name(name, "mlp2x_gelu" if is_mlp else "linear")
            ours = "vlm.base_model.model." + with_base_layer(inside, weights)
        renamed[ours] = value
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
