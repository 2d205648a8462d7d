"""What the sections of transformers' configurations of SAM 2 and SAM 3's tracker say about sizes."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate
from typing import Any

from transformers import PreTrainedConfig

HIERA, VIT = "sam2_vision_model", "sam3_vision_model"  # model_type of the two vision encoders
NUM_LEVELS = 3  # of features that masks are decoded from
# Entries of every configuration of transformers, which say nothing about sizes.
COMMON = frozenset(PreTrainedConfig().to_dict()) | {"model_type", "_name_or_path"}


def is_hiera(vision: PreTrainedConfig) -> bool:
    """Whether the vision encoder is that of SAM 2."""
    return vision.model_type == HIERA


def plain(section: Mapping[str, Any]) -> dict[str, Any]:
    """A section of a configuration without what says nothing about sizes; [64, 64] as the size of a square is 64."""
    entries = {}
    for name, value in section.items():
        if name not in COMMON:
            value = side_of(value) if name == "image_size" else value
            entries[name] = plain(value) if isinstance(value, Mapping) else value
    return entries


def side_of(size: Any) -> Any:
    """The side of a square given as a number or as [height, width]; other sizes as they are."""
    is_square = isinstance(size, list | tuple) and len(size) == 2 and size[0] == size[1]
    return size[0] if is_square else size


def stride_of(vision: PreTrainedConfig) -> Any:
    """Pixels of the image, along a side, of a cell of the coarsest level that masks are decoded from."""
    if is_hiera(vision):
        # The finest level has the patches' stride; each further one doubles it.
        return side_of(vision.backbone_config.patch_stride) * 2 ** (NUM_LEVELS - 1)
    return side_of(vision.backbone_config.patch_size)


def levels_of(vision: PreTrainedConfig) -> int:
    """Levels of features that masks are decoded from."""
    if is_hiera(vision):
        return vision.num_feature_levels
    return sum(scale >= 1 for scale in vision.scale_factors)


def windows_of(vision: PreTrainedConfig) -> list[int]:
    """Sides of the windows of attention, in cells."""
    backbone = vision.backbone_config
    return list(backbone.window_size_per_stage) if is_hiera(vision) else [backbone.window_size]


def pooled_blocks(vision: PreTrainedConfig) -> list[int]:
    """Blocks of SAM 2 that begin a stage and attend globally."""
    if not is_hiera(vision):
        return []
    backbone = vision.backbone_config
    starts = list(accumulate(backbone.blocks_per_stage))[: backbone.num_query_pool_stages]
    return [start for start in starts if start in backbone.global_attention_blocks]
