"""LLaVA as its authors store it: v1 (linear projector) and v1.5 (two layers), the CLIP tower inside or not.

Our model is a Hugging Face LLaVA, whose projector is Linear - act - Linear. A linear projector becomes that
with the identity as activation and as second layer: the same function.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from model.interop.parts import Parts, ReadOptions, local_folder, named_dtype, read_json
from model.weights import load_pretrained, read_folder, without_prefix

ARCHITECTURES = ("LlavaLlamaForCausalLM",)

# (pattern, replacement) from their names to Hugging Face's; the first that matches counts.
KEY_MAP = (
    (r"model\.vision_tower\.vision_tower\.vision_model\.", "model.vision_tower.vision_model."),
    (r"model\.mm_projector\.(?:0\.)?(weight|bias)$", r"model.multi_modal_projector.linear_1.\1"),
    (r"model\.mm_projector\.2\.(weight|bias)$", r"model.multi_modal_projector.linear_2.\1"),
    (r"model\.(embed_tokens|layers|norm)\.", r"model.language_model.\1."),
    (r"lm_head\.", "lm_head."),
)
# Buffers that older versions of transformers stored; they are computed.
COMPUTED = re.compile(r"rotary_emb\.inv_freq$|position_ids$")

# Entries of their config.json that mean the same in LlamaConfig.
LLAMA_FIELDS = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "hidden_act", "max_position_embeddings", "initializer_range", "rms_norm_eps", "rope_theta",
    "rope_scaling", "bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings", "attention_bias",
)  # fmt: skip
SELECT_FEATURE = {"patch": "default", "cls_patch": "full"}
PROJECTOR_ACT = {"linear": "linear", "mlp2x_gelu": "gelu"}


def recognises(config: dict[str, Any]) -> bool:
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
    weights = {name: value for name, value in weights.items() if not COMPUTED.search(name)}
    tower_weights, vision_config, clip_processor = read_tower(folder, config, weights, options)
    weights.update(tower_weights)
    mapped = {hugging_face_name(name): value for name, value in weights.items()}
    act = add_identity_layer(config, mapped)
    llava_config = LlavaConfig(
        vision_config=vision_config,
        text_config=text_config(config, vocab_size=len(weights["model.embed_tokens.weight"])),
        projector_hidden_act=act,
        vision_feature_layer=config.get("mm_vision_select_layer", -2),
        vision_feature_select_strategy=SELECT_FEATURE[config.get("mm_vision_select_feature", "patch")],
        image_seq_length=(vision_config.image_size // vision_config.patch_size) ** 2,
        tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
    )
    vlm = load_pretrained(
        LlavaForConditionalGeneration,
        None,
        source=str(folder),
        hint="Is --vision_tower the CLIP that this LLaVA was trained with?",
        config=llava_config,
        state_dict=mapped,
        dtype=options.dtype or named_dtype(config.get("torch_dtype") or config.get("dtype")) or torch.float32,
        attn_implementation=options.attn_implementation,
    )
    return Parts(
        folder=folder,
        vlm=vlm,
        clip_processor=clip_processor,
        image_aspect_ratio="pad" if config.get("image_aspect_ratio") == "pad" else "square",
    )


def hugging_face_name(name: str) -> str:
    """Hugging Face's name of one of their weights; an unknown name is kept, and found to be left over."""
    for pattern, replacement in KEY_MAP:
        renamed, count = re.subn("^" + pattern, replacement, name)
        if count:
            return renamed
    return name


def add_identity_layer(config: dict[str, Any], mapped: dict[str, Tensor]) -> str:
    """Completes a linear projector in place; returns the projector's activation.

    Raises:
        ValueError: the checkpoint has no projector, or one of another kind.
    """
    kind = config.get("mm_projector_type", "linear")
    first = mapped.get("model.multi_modal_projector.linear_1.weight")
    if kind not in PROJECTOR_ACT:
        raise ValueError(f"unknown mm_projector_type {kind!r}; known: {', '.join(PROJECTOR_ACT)}")
    if first is None:
        raise ValueError(
            "the checkpoint has no model.mm_projector weights: it is a language model that has not become a "
            "LLaVA; pass the folder of a whole LLaVA as --version"
        )
    second = "model.multi_modal_projector.linear_2"
    if kind == "linear":
        mapped[f"{second}.weight"] = torch.eye(first.shape[0], dtype=first.dtype)
        mapped[f"{second}.bias"] = torch.zeros(first.shape[0], dtype=first.dtype)
    return PROJECTOR_ACT[kind]


def text_config(config: dict[str, Any], *, vocab_size: int) -> LlamaConfig:
    """LlamaConfig from the flat config.json of an original LLaVA."""
    fields = {name: config[name] for name in LLAMA_FIELDS if config.get(name) is not None}
    return LlamaConfig(**fields, vocab_size=vocab_size)


def read_tower(
    folder: Path, config: dict[str, Any], weights: dict[str, Tensor], options: ReadOptions
) -> tuple[dict[str, Tensor], CLIPVisionConfig, dict[str, Any]]:
    """The CLIP tower: weights to add to the checkpoint's, config, and image processor settings.

    The tower is a folder: the one given, else the one that the checkpoint's config names. Weights of a tower
    inside the checkpoint, which may have been trained on, win over the folder's.
    """
    inside = "model.vision_tower.vision_tower."
    tower = tower_folder(folder, config, options)
    vision_config = CLIPVisionConfig.from_pretrained(tower)
    added = {}
    if not any(key.startswith(inside) for key in weights):
        stored = read_folder(tower)
        # Newer versions of transformers store the tower without its prefix.
        stored = without_prefix(stored, "vision_model.") or stored
        added = {
            f"{inside}vision_model.{key}": value for key, value in stored.items() if not COMPUTED.search(key)
        }
    return added, vision_config, read_json(tower / "preprocessor_config.json")


def tower_folder(folder: Path, config: dict[str, Any], options: ReadOptions) -> Path:
    """The folder of the CLIP tower: as told, else as the checkpoint names it, from here or from beside it.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    if options.vision_tower:
        return local_folder(options.vision_tower, flag="--vision_tower")
    name = config.get("mm_vision_tower") or config.get("vision_tower")
    if not name:
        raise FileNotFoundError(f"{folder} does not name its CLIP tower; pass --vision_tower FOLDER")
    if (folder.parent / name).is_dir():
        return folder.parent / name
    try:
        return local_folder(name, flag="the CLIP tower")
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{error}; {folder}/config.json names it. Pass --vision_tower FOLDER"
        ) from error
