"""LLaVA as its authors store it: v1 (linear projector) and v1.5 (two layers), with or without the CLIP tower.

Our model is a Hugging Face LLaVA, whose projector is Linear - activation - Linear. With the identity as activation
and as second layer, that is the same function as a linear projector.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from model.checkpoints.layouts.base import ATTENTION, Parts, ReadOptions, check_size, named_dtype
from model.checkpoints.layouts.clip import TOWER_PREFIX, read_tower
from model.checkpoints.weights import read_folder
from model.errors import UserError
from model.files import read_json
from model.huggingface import configuration
from model.strict_loading import load_pretrained

NAME = "original LLaVA"
ARCHITECTURES = ("LlavaLlamaForCausalLM",)

# Prefixes of their names and of Hugging Face's; the first that fits is taken, in both directions.
NAMES = (
    (TOWER_PREFIX, "model.vision_tower.vision_model."),
    ("model.embed_tokens.", "model.language_model.embed_tokens."),
    ("model.layers.", "model.language_model.layers."),
    ("model.norm.", "model.language_model.norm."),
    ("lm_head.", "lm_head."),
)
LINEAR_1, LINEAR_2 = "model.multi_modal_projector.linear_1.", "model.multi_modal_projector.linear_2."
# The same for the projector, by `mm_projector_type`.
PROJECTOR_NAMES = {
    "linear": (("model.mm_projector.", LINEAR_1),),
    "mlp2x_gelu": (("model.mm_projector.0.", LINEAR_1), ("model.mm_projector.2.", LINEAR_2)),
}
# Buffers that older versions of transformers stored; they are computed.
COMPUTED = re.compile(r"rotary_emb\.inv_freq$|position_ids$")

# Entries of their config.json that mean the same in LlamaConfig.
LLAMA_FIELDS = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "hidden_act", "max_position_embeddings", "initializer_range", "rms_norm_eps", "rope_theta",
    "rope_scaling", "bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings", "attention_bias",
)  # fmt: skip
SELECT_FEATURE = {"patch": "default", "cls_patch": "full"}
# Entries whose other values belong to another model: tiles of the image, resamplers, quantised weights.
READ: dict[str, tuple[Any, ...]] = {
    "image_aspect_ratio": (None, "square", "pad"), "mm_patch_merge_type": (None, "flat"), "s2": (None, False),
    "mm_vision_select_feature": (None, "", *SELECT_FEATURE), "mm_resampler_type": (None, "identity"),
    "quantization_config": (None, {}),
}  # fmt: skip
PROJECTOR_ACT = {"linear": "linear", "mlp2x_gelu": "gelu"}


def recognises(config: dict[str, Any]) -> bool:
    """See `Layout`."""
    return any(name in ARCHITECTURES for name in config.get("architectures") or [])


def read(folder: Path, options: ReadOptions) -> Parts:
    """Reads the folder's weights and config; see `read_llava`."""
    return read_llava(folder, read_json(folder / "config.json"), read_folder(folder), options)


def read_llava(
    folder: Path, config: dict[str, Any], weights: dict[str, Tensor], options: ReadOptions
) -> Parts:
    """Builds a Hugging Face LLaVA from original weights.

    Raises:
        FileNotFoundError: the CLIP tower is neither inside nor where --vision_tower (or the config) says.
        ValueError: weights do not fit, or the projector is of an unknown kind.
    """
    check_settings(folder, config)
    weights = {name: value for name, value in weights.items() if not COMPUTED.search(name)}
    tower_weights, vision_config, clip_processor = read_tower(folder, config, weights, options)
    weights.update(tower_weights)
    projector = stored_projector_type(config, weights)
    mapped = {hugging_face_name(name, projector): value for name, value in weights.items()}
    add_identity_layer(folder, projector, mapped)
    if "model.embed_tokens.weight" not in weights:
        raise UserError(f"{folder} has no model.embed_tokens.weight; pass the folder of a whole LLaVA")
    llava_config = configuration(
        LlavaConfig,
        folder,
        vision_config=vision_config,
        text_config=text_config(config, vocab_size=len(weights["model.embed_tokens.weight"])),
        projector_hidden_act=PROJECTOR_ACT[projector],
        vision_feature_layer=config.get("mm_vision_select_layer", -2),
        vision_feature_select_strategy=SELECT_FEATURE[config.get("mm_vision_select_feature") or "patch"],
        image_seq_length=(vision_config.image_size // vision_config.patch_size) ** 2,
        tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
    )
    num_stored = sum(value.numel() for value in mapped.values())
    check_size(LlavaForConditionalGeneration, llava_config, num_stored, folder=folder)
    vlm = load_pretrained(
        LlavaForConditionalGeneration,
        None,
        source=str(folder),
        config=llava_config,
        state_dict=mapped,
        dtype=options.dtype or named_dtype(config.get("torch_dtype") or config.get("dtype")) or torch.float32,
        attn_implementation=ATTENTION,
        **options.placement,
    )
    return Parts(
        folder=folder,
        vlm=vlm,
        clip_processor=clip_processor,
        image_aspect_ratio="pad" if config.get("image_aspect_ratio") == "pad" else "square",
    )


def check_settings(folder: Path, config: dict[str, Any]) -> None:
    """UserError for an entry of config.json that would change what the weights mean, such as those of LLaVA 1.6."""
    wrong = [f"{name}={config[name]!r}" for name, known in READ.items() if config.get(name) not in known]
    if wrong:
        raise UserError(
            f"{folder}/config.json has {', '.join(wrong)}, which is not supported; pass a LLaVA 1 or 1.5, or its "
            "Hugging Face conversion"
        )


def hugging_face_name(name: str, projector: str = "linear") -> str:
    """Hugging Face's name of one of their weights; an unknown name is kept, and strict loading reports it."""
    return next(
        (ours + name.removeprefix(theirs) for theirs, ours in table(projector) if name.startswith(theirs)),
        name,
    )


def original_name(name: str, projector: str = "linear") -> str | None:
    """Their name of one of Hugging Face's weights; None for a weight that they do not have."""
    return next(
        (theirs + name.removeprefix(ours) for theirs, ours in table(projector) if name.startswith(ours)), None
    )


def table(projector: str) -> tuple[tuple[str, str], ...]:
    """All pairs of prefixes of a LLaVA with a projector of this `mm_projector_type`."""
    if projector not in PROJECTOR_NAMES:
        raise UserError(f"unknown mm_projector_type {projector!r}; known: {', '.join(PROJECTOR_NAMES)}")
    return (*PROJECTOR_NAMES[projector], *NAMES)


def stored_projector_type(config: dict[str, Any], weights: dict[str, Tensor]) -> str:
    """The `mm_projector_type` of config.json; of LLaVA v1, which does not write it, by the names of the weights."""
    has_two_layers = any(name.startswith("model.mm_projector.2.") for name in weights)
    return config.get("mm_projector_type") or ("mlp2x_gelu" if has_two_layers else "linear")


def add_identity_layer(folder: Path, kind: str, mapped: dict[str, Tensor]) -> None:
    """Completes a linear projector in place.

    Raises:
        ValueError: the checkpoint has no projector.
    """
    first = mapped.get(LINEAR_1 + "weight")
    if first is None:
        raise UserError(
            f"{folder} has no model.mm_projector weights: it is a language model that has not become a "
            "LLaVA; pass the folder of a whole LLaVA as --version"
        )
    if kind == "linear":
        mapped[LINEAR_2 + "weight"] = torch.eye(first.shape[0], dtype=first.dtype)
        mapped[LINEAR_2 + "bias"] = torch.zeros(first.shape[0], dtype=first.dtype)


def text_config(config: dict[str, Any], *, vocab_size: int) -> LlamaConfig:
    """LlamaConfig from the flat config.json of an original LLaVA."""
    fields = {name: config[name] for name in LLAMA_FIELDS if config.get(name) is not None}
    return configuration(LlamaConfig, "config.json", **fields, vocab_size=vocab_size)
