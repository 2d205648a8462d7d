"""SAM 2 as its authors publish it, and SAM 2 and SAM 3's tracker as Hugging Face stores them.

What both have for video - memory, object pointers - is not read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.checkpoints.weights import prefix_of, without_prefix
from model.decoders.sam2 import SECTIONS, Sam2Settings
from model.errors import UserError
from model.files import read_json
from model.plausible import check_entries

TRUNK = "image_encoder.trunk."
ENCODER = f"{TRUNK}pos_embed"
POSITIONS = "shared_image_embedding.positional_embedding"
POINT_POSITIONS = "prompt_encoder.shared_embedding.positional_embedding"
IMAGE_SIZE = 1024  # of all published files; they do not say it


@dataclass(frozen=True, kw_only=True)
class Hiera:
    """Sizes of an image encoder of SAM 2 that its weights do not say, beside the two that identify it."""

    dim: int  # of the first stage
    blocks: tuple[int, ...]  # of each stage
    heads: int  # of the first stage; each further stage has twice as many
    windows: tuple[int, ...]  # of each stage, in cells
    global_blocks: tuple[int, ...]

    def vision_config(self, background: int, width: int) -> dict[str, Any]:
        """The section of the library's configuration; `background`: side of the coarse position table."""
        stages = range(len(self.blocks))
        dims = [self.dim * 2**stage for stage in stages]
        grid = IMAGE_SIZE // 4
        return {
            "backbone_config": {
                "hidden_size": self.dim,
                "num_attention_heads": self.heads,
                "image_size": IMAGE_SIZE,
                "blocks_per_stage": list(self.blocks),
                "embed_dim_per_stage": dims,
                "num_attention_heads_per_stage": [self.heads * 2**stage for stage in stages],
                "window_size_per_stage": list(self.windows),
                "global_attention_blocks": list(self.global_blocks),
                "window_positional_embedding_background_size": [background, background],
            },
            "backbone_channel_list": dims[::-1],
            "backbone_feature_sizes": [[grid >> level] * 2 for level in range(3)],
            "fpn_hidden_size": width,
        }


# sam2/configs/ of facebookresearch/sam2; 2.0 and 2.1 have the same sizes.
SIZES = {
    "tiny": Hiera(dim=96, blocks=(1, 2, 7, 2), heads=1, windows=(8, 4, 14, 7), global_blocks=(5, 7, 9)),
    "small": Hiera(dim=96, blocks=(1, 2, 11, 2), heads=1, windows=(8, 4, 14, 7), global_blocks=(7, 10, 13)),
    "base_plus": Hiera(
        dim=112, blocks=(2, 3, 16, 3), heads=2, windows=(8, 4, 14, 7), global_blocks=(12, 16, 20)
    ),
    "large": Hiera(dim=144, blocks=(2, 6, 36, 4), heads=2, windows=(8, 4, 16, 8), global_blocks=(23, 33, 43)),
}
BACKGROUND = {"base_plus": 14}  # side of the coarse position table; the others' is 7

# Weights of the video memory, in the names of its authors and in Hugging Face's.
MEMORY = re.compile(
    r"(memory_|maskmem_tpos_enc|mask_downsample|no_mem_pos_enc|no_obj_|obj_ptr_|object_pointer_proj"
    r"|temporal_positional_encoding|no_memory_positional_encoding|no_object_pointer"
    r"|occlusion_spatial_embedding_parameter)"
)
Rules = tuple[tuple[str, str], ...]
# Their names -> Hugging Face's, one after the other.
RULES = (
    (r"^image_encoder\.trunk\.", "vision_encoder.backbone."),
    (r"^image_encoder\.neck\.convs\.(\d+)\.conv\.", r"vision_encoder.neck.convs.\1."),
    (r"\.patch_embed\.proj\.", ".patch_embed.projection."),
    (r"^sam_", ""),
    (r"^prompt_encoder\.pe_layer\.positional_encoding_gaussian_matrix$", POINT_POSITIONS),
    (r"\.mask_downscaling\.0\.", ".mask_embed.conv1."),
    (r"\.mask_downscaling\.1\.", ".mask_embed.layer_norm1."),
    (r"\.mask_downscaling\.3\.", ".mask_embed.conv2."),
    (r"\.mask_downscaling\.4\.", ".mask_embed.layer_norm2."),
    (r"\.mask_downscaling\.6\.", ".mask_embed.conv3."),
    (r"\.output_upscaling\.0\.", ".upscale_conv1."),
    (r"\.output_upscaling\.1\.", ".upscale_layer_norm."),
    (r"\.output_upscaling\.3\.", ".upscale_conv2."),
    (r"\.mlp\.layers\.0\.", ".mlp.proj_in."),
    (r"\.mlp\.layers\.1\.", ".mlp.proj_out."),
    (
        r"(output_hypernetworks_mlps\.\d+|iou_prediction_head|pred_obj_score_head)\.layers\.0\.",
        r"\1.proj_in.",
    ),
    (
        r"(output_hypernetworks_mlps\.\d+|iou_prediction_head|pred_obj_score_head)\.layers\.2\.",
        r"\1.proj_out.",
    ),
    (
        r"(output_hypernetworks_mlps\.\d+|iou_prediction_head|pred_obj_score_head)\.layers\.1\.",
        r"\1.layers.0.",
    ),
    (r"^(mask_decoder\..*)\.out_proj\.", r"\1.o_proj."),
    (r"\.norm(\d)\.", r".layer_norm\1."),
    (r"\.norm_final_attn\.", ".layer_norm_final_attn."),
    (r"^no_mem_embed$", "no_memory_embedding"),
)
# Names in folders of SAM 3, whose detector shares the image encoder's backbone.
SAM3_RULES = (
    (r"^tracker_model\.", ""),
    (r"^detector_model\.vision_encoder\.backbone\.", "vision_encoder.backbone."),
    (r"^tracker_neck\.", "vision_encoder.neck."),
)


def is_sam2(weights: Mapping[str, Tensor]) -> bool:
    """Whether these are the weights of a file of SAM 2."""
    return prefix_of(weights, ENCODER) is not None


def read_original(weights: Mapping[str, Tensor]) -> tuple[Sam2Settings, dict[str, Tensor]]:
    """Sizes and weights of a file of facebookresearch/sam2.

    Raises:
        UserError: it is of no published size.
    """
    weights = without_prefix(weights, prefix_of(weights, ENCODER) or "")
    own = {name: value for name, value in weights.items() if not MEMORY.match(name)}
    size = size_of(weights)
    background, width = weights[ENCODER].shape[-1], len(weights["image_encoder.neck.convs.0.conv.weight"])
    return settings_of(size, background, width), named_as_library(own)


def named_as_library(weights: Mapping[str, Tensor], rules: Rules = RULES) -> dict[str, Tensor]:
    """The weights of an original file under the names of transformers."""
    renamed = {renamed_by(rules, name): value for name, value in weights.items()}
    points = [name for name in renamed if name.startswith("prompt_encoder.point_embeddings.")]
    # One weight for each kind of point there, one table here.
    renamed["prompt_encoder.point_embed.weight"] = torch.cat([renamed.pop(name) for name in sorted(points)])
    return with_positions(renamed)


def size_of(weights: Mapping[str, Tensor]) -> Hiera:
    """The published size that has these stages."""
    dim = weights[ENCODER].shape[1]
    numbers = {
        int(found[1])
        for name in weights
        if (found := re.match(r"image_encoder\.trunk\.blocks\.(\d+)\.", name))
    }
    # A stage begins where the width changes, for which its first block has a projection.
    starts = [0, *(number for number in sorted(numbers) if f"{TRUNK}blocks.{number}.proj.weight" in weights)]
    ends = [*starts[1:], 1 + max(numbers)]
    blocks = tuple(end - start for start, end in zip(starts, ends, strict=True))
    for size in SIZES.values():
        if (size.dim, size.blocks) == (dim, blocks):
            return size
    known = ", ".join(f"{name} ({size.dim}, {list(size.blocks)})" for name, size in SIZES.items())
    raise UserError(
        f"a SAM 2 with {dim} channels and {list(blocks)} blocks is none of {known}, and the file does not say its "
        "windows and heads; pass a folder in Hugging Face's layout"
    )


def settings_of(size: Hiera, background: int, width: int = 256) -> Sam2Settings:
    """The settings of a published size."""
    sizes = {"hidden_size": width}
    return Sam2Settings(
        vision_config=size.vision_config(background, width),
        prompt_encoder_config={**sizes, "image_size": IMAGE_SIZE},
        mask_decoder_config=sizes,
    )


def published(name: str) -> Sam2Settings:
    """The settings of one of `SIZES`."""
    return settings_of(SIZES[name], BACKGROUND.get(name, 7))


def read_hugging_face(
    folder: Path, kind: str, weights: Mapping[str, Tensor]
) -> tuple[Sam2Settings, dict[str, Tensor]]:
    """Sizes and weights of a folder of SAM 2 or SAM 3's tracker, with or without its video parts.

    Args:
        kind: of the decoder, see `model.decoders.sam2.KINDS`.

    Raises:
        UserError: config.json describes no such decoder.
    """
    renamed = {renamed_by(SAM3_RULES, name): value for name, value in weights.items()}
    # Of SAM 3's detector only the backbone is needed.
    kept = {
        name: value
        for name, value in renamed.items()
        if not MEMORY.match(name) and not name.startswith("detector_model.")
    }
    return hugging_face_settings(folder, kind), with_positions(kept)


def hugging_face_settings(folder: Path, kind: str) -> Sam2Settings:
    """The settings that a folder's config.json and preprocessor_config.json say."""
    content = read_json(folder / "config.json")
    content = content.get("tracker_config", content)
    pixels = read_json(folder / "preprocessor_config.json")
    try:
        settings = Sam2Settings(
            kind=kind,
            **{name: content[name] for name in SECTIONS if name in content},
            pixel_mean=pixels.get("image_mean"),
            pixel_std=pixels.get("image_std"),
        )
    except (UserError, TypeError, AttributeError) as error:
        raise UserError(f"{folder}/config.json: {error}") from error
    check_entries(folder / "config.json", settings.to_dict())
    return settings


def renamed_by(rules: Rules, name: str) -> str:
    """The name after all rules."""
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def with_positions(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The matrix of positions under both its names, in float32: files may hold it once."""
    matrix = weights.get(POSITIONS, weights.get(POINT_POSITIONS))
    if matrix is None:
        return weights
    return {**weights, POSITIONS: matrix.float(), POINT_POSITIONS: matrix.float()}
