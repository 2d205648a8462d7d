"""FLOPs of the vision tower of a base, and how many tokens an image has before anybody has seen it.

LLaVA's CLIP is counted exactly; other towers as the vision transformers that they are, from the sizes in config.json:
what a family adds beside its layers (position interpolation, pixel shuffles) is no matrix product.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from model.backbones.base_processor import MAX_IMAGE_TOKENS, read_processor
from model.backbones.huggingface_images import HuggingFaceImages
from model.errors import UserError
from model.text.tokenizer_files import load_tokenizer
from utils.config.training import TrainConfig
from utils.costs.flop_formulas import attention, clip_flops, clip_tokens, linear, projector_flops

IMAGE_SIZE = (480, 640)  # height and width of the image that estimates are about
GATED = ("qwen2_5_vl",)  # towers whose MLP has three layers
TILES = (
    13  # of such an image by the defaults of InternVL (12 and the whole) and SmolVLM (4 x 3 and the whole)
)


def num_image_tokens(vlm: Any, config: TrainConfig) -> int:
    """Tokens of an image of `IMAGE_SIZE`: by the folder's own processor, else by the defaults of the family.

    Args:
        vlm: the configuration of the base.
        config: says where it is, and what --max_image_tokens allows.
    """
    vision = vlm.vision_config
    if vlm.model_type == "llava":
        return clip_tokens(vlm)
    folder = Path(config.version).expanduser()
    if (folder / "tokenizer.json").is_file():
        below = folder / "base_processor"
        reader = read_processor(below if below.is_dir() else folder)
        images = HuggingFaceImages(reader, load_tokenizer(folder))
        images.limit(config.min_image_tokens, config.max_image_tokens)
        blank = np.zeros((*IMAGE_SIZE, 3), dtype=np.uint8)
        return images.prepare(blank).placeholder.num_image_tokens
    most = config.max_image_tokens or MAX_IMAGE_TOKENS
    if hasattr(vision, "spatial_merge_size"):
        side = vision.patch_size * vision.spatial_merge_size
        return min(most, math.prod(round(length / side) for length in IMAGE_SIZE))
    if not (each := tokens_of_tile(vlm)):
        raise UserError(
            f"--version {config.version} is not there, and its family has no fixed tiles; pass its folder"
        )
    return each * int(min(TILES, max(1, most // each)))


def tokens_of_tile(vlm: Any) -> int | None:
    """Tokens of one tile, where images are cut into tiles of a fixed number."""
    vision = vlm.vision_config
    if hasattr(vision, "spatial_merge_size") or vlm.model_type == "llava_onevision":
        return None
    side, patch = (value[0] if isinstance(value, list | tuple) else value
                   for value in (vision.image_size, vision.patch_size))  # fmt: skip
    return (side // patch) ** 2 // patches_per_token(vlm)


def patches_per_token(vlm: Any) -> int:
    """How many patches of the tower become one token."""
    if num_tokens := getattr(vlm, "mm_tokens_per_image", None):  # Gemma
        return (vlm.vision_config.image_size // vlm.vision_config.patch_size) ** 2 // num_tokens
    if merge := getattr(vlm.vision_config, "spatial_merge_size", None) or getattr(vlm, "scale_factor", None):
        return merge**2
    return round(1 / getattr(vlm, "downsample_ratio", 1) ** 2)


def tower_flops(vlm: Any, num_tokens: int) -> int:
    """The vision tower on an image that has `num_tokens` tokens."""
    if vlm.model_type == "llava":
        return clip_flops(vlm)
    vision = vlm.vision_config
    patches, hidden = num_tokens * patches_per_token(vlm), vision.hidden_size
    seen = patches  # by each patch, in attention: its tile, or the whole image
    if tile := tokens_of_tile(vlm):
        seen = min(patches, tile * patches_per_token(vlm))
    mlp = 3 if vlm.model_type in GATED else 2
    layer = 4 * linear(patches, hidden, hidden) + mlp * linear(patches, hidden, vision.intermediate_size)
    layer += attention(patches, seen, hidden)
    patch = vision.patch_size[0] if isinstance(vision.patch_size, list | tuple) else vision.patch_size
    pixels = 3 * patch**2 * getattr(vision, "temporal_patch_size", 1)
    # Qwen's name, or that of the others.
    num_layers = vision.depth if hasattr(vision, "depth") else vision.num_hidden_layers
    return linear(patches, pixels, hidden) + num_layers * layer


def connector_flops(vlm: Any, num_tokens: int) -> int:
    """From the tower's features to `num_tokens` tokens of the language model."""
    if vlm.model_type == "llava":
        return projector_flops(vlm)
    width, hidden = vlm.vision_config.hidden_size * patches_per_token(vlm), vlm.text_config.hidden_size
    if vlm.model_type == "gemma3":
        return linear(num_tokens, vlm.vision_config.hidden_size, hidden)
    if vlm.model_type in ("smolvlm", "idefics3"):
        return linear(num_tokens, width, hidden)
    middle = width if hasattr(vlm.vision_config, "spatial_merge_size") else hidden
    once = linear(num_tokens, width, middle) + linear(num_tokens, middle, hidden)
    return once * (1 + len(getattr(vlm.vision_config, "deepstack_visual_indexes", ())))


def pixel_bytes(vlm: Any, num_tokens: int) -> int:
    """Bytes of an image for the tower: uint8 for CLIP, else float32 patches or tiles."""
    vision = vlm.vision_config
    if vlm.model_type == "llava":
        return 3 * vision.image_size**2
    patch = vision.patch_size[0] if isinstance(vision.patch_size, list | tuple) else vision.patch_size
    pixels = patch**2 * getattr(vision, "temporal_patch_size", 1)
    return 4 * 3 * pixels * num_tokens * patches_per_token(vlm)
