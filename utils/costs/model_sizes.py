"""Sizes of the parts that a configuration names: read where the folders are there, the published ones elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from transformers import AutoConfig, CLIPVisionConfig, LlamaConfig, LlavaConfig, PreTrainedConfig

from model.backbones.build import BACKBONES
from model.checkpoints.layouts import llava_v1, sam2
from model.checkpoints.layouts.mask_decoder import check_head, read_mask_decoder
from model.choices import CONCEPT_HEAD
from model.config import LasagnaConfig
from model.decoders.base import DecoderSettings
from model.decoders.concept_settings import ConceptSettings
from model.decoders.sam import SamSettings
from model.decoders.sam2 import Sam2Settings
from model.errors import UserError
from model.files import read_json
from model.huggingface import from_pretrained
from model.text.templates import OWN_PROMPT
from model.text.tokenizer_files import load_tokenizer
from model.text.tokens import add_special_tokens, wanted_tokens
from utils.config.training import TrainConfig
from utils.costs.base_sizes import base_named

Sizes = TypeVar("Sizes")

# Touvron et al., "LLaMA: Open and Efficient Foundation Language Models", 2023, table 2, and the config.json of the
# published weights; Vicuna and LLaVA kept them. Found in the folder's name.
LLAMA: dict[str, dict[str, int]] = {
    "7b": {
        "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
    },
    "13b": {
        "hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40,
    },
}  # fmt: skip
LLAMA_VOCABULARY = 32000
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model")
# openai/clip-vit-large-patch14 and -336: Radford et al., "Learning Transferable Visual Models", 2021, table 20.
CLIP_LARGE: dict[str, int] = {
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
    "patch_size": 14,
}  # fmt: skip
# segment_anything/build_sam.py
SAM: dict[str, dict[str, Any]] = {
    "vit_h": {},
    "vit_l": {
        "encoder_dim": 1024, "encoder_depth": 24, "encoder_mlp_dim": 4096, "encoder_global_blocks": (5, 11, 17, 23),
    },
    "vit_b": {
        "encoder_dim": 768, "encoder_depth": 12, "encoder_num_heads": 12, "encoder_mlp_dim": 3072,
        "encoder_global_blocks": (2, 5, 8, 11),
    },
}  # fmt: skip


def model_config(config: TrainConfig) -> LasagnaConfig:
    """The configuration of the model that `config` trains; no weights are read, but SAM's table of contents.

    Raises:
        ValueError: a part is not there, and its name does not say its size.
    """
    stored = read_json(Path(config.version).expanduser() / "config.json")
    if stored.get("model_type") == "lasagna":
        return from_pretrained(LasagnaConfig, config.version)
    format = config.sequence_format
    if (other := other_base(config, stored)) is not None:
        return LasagnaConfig(
            vlm_config=other,
            sam_config=sam_settings(config.vision_pretrained, config.mask_head or None).to_dict(),
            sequence_format=format.to_dict(),
            prompt=OWN_PROMPT,
            image_token_id=other.image_token_id,
        )
    vlm = llava_config(config, stored)
    vlm.text_config.vocab_size = vocabulary(config, vlm.text_config.vocab_size)
    vlm.image_token_index = vlm.text_config.vocab_size - 1
    return LasagnaConfig(
        vlm_config=vlm,
        sam_config=sam_settings(config.vision_pretrained, config.mask_head or None).to_dict(),
        sequence_format=format.to_dict(),
        prompt=config.prompt_template or "llava_v1",
        image_token_id=vlm.image_token_index,
    )


def other_base(config: TrainConfig, stored: dict[str, Any]) -> PreTrainedConfig | None:
    """The sizes of a base other than LLaVA: its folder's, else the published ones; None for a LLaVA."""
    if not stored:
        return base_named(config.version)
    family = stored.get("model_type")
    return from_pretrained(AutoConfig, config.version) if family in BACKBONES and family != "llava" else None


def vocabulary(config: TrainConfig, num_base: int) -> int:
    """Tokens of the model in training: the base's and those of the format that it does not have yet."""
    folder = Path(config.version).expanduser()
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        return num_base + len(wanted_tokens(config.sequence_format))
    tokenizer = load_tokenizer(folder)
    add_special_tokens(tokenizer, config.sequence_format)
    return len(tokenizer)


def llava_config(config: TrainConfig, stored: dict[str, Any]) -> LlavaConfig:
    """LLaVA's sizes: its folder's, else those that its name says."""
    if stored.get("model_type") == "llava" and "text_config" in stored:
        return from_pretrained(AutoConfig, config.version)
    if stored:
        text = llava_v1.text_config(stored, vocab_size=stored["vocab_size"])
        tower = config.vision_tower or stored.get("mm_vision_tower") or ""
    else:
        text = LlamaConfig(**by_name(config.version, LLAMA, "--version"), vocab_size=LLAMA_VOCABULARY)
        tower = config.vision_tower
    vision = clip_config(tower)
    return LlavaConfig(
        text_config=text,
        vision_config=vision,
        image_seq_length=(vision.image_size // vision.patch_size) ** 2,
    )


def clip_config(tower: str) -> CLIPVisionConfig:
    """CLIP's sizes: the folder's, else ViT-L/14 at 224 pixels, or at 336 if the name says so."""
    if (Path(tower).expanduser() / "config.json").is_file():
        return from_pretrained(CLIPVisionConfig, tower)
    return CLIPVisionConfig(**CLIP_LARGE, image_size=336 if "336" in tower else 224)


def sam_settings(path: str, head: str | None = None) -> DecoderSettings:
    """The mask decoder's sizes: those of the file or folder, else those that its name says; `head`: --mask_head."""
    if path and Path(path).expanduser().exists():
        return read_mask_decoder(path, head)[0]
    settings = by_name(path or "vit_h", decoders(head), "--vision_pretrained")()
    check_head(settings, head, f"--vision_pretrained {path or 'vit_h'}")
    return settings


def decoders(head: str | None = None) -> dict[str, Callable[[], DecoderSettings]]:
    """The published mask decoders, by what stands in the names of their files and repositories."""
    known: dict[str, Callable[[], DecoderSettings]] = {
        name: partial(SamSettings, **sizes) for name, sizes in SAM.items()
    }
    for name in sam2.SIZES:
        for written in (f"hiera_{name}", f"hiera-{name.replace('_', '-')}"):
            known[written] = partial(sam2.published, name)
    if head == CONCEPT_HEAD:
        return {**known, "sam3": ConceptSettings}
    return {**known, "sam3": partial(Sam2Settings, kind="sam3_tracker")}


def by_name(path: str, known: dict[str, Sizes], flag: str) -> Sizes:
    """The sizes whose key is in the last part of `path`; the longest key first, as "13b" holds "3b"."""
    name = Path(path).name.lower()
    for key in sorted(known, key=len, reverse=True):
        if key in name:
            return known[key]
    raise UserError(
        f"{flag} {path} is not there and its name says no known size ({', '.join(known)}); pass the folder or file"
    )
