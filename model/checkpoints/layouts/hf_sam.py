"""SAM and SAM-HQ as Hugging Face stores them (`SamModel`, `SamHQModel`), in the names of `segment_anything`."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

POSITIONS = "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
# Applied one after the other.
RULES = (
    (r"^vision_encoder\.", "image_encoder."),
    (r"^image_encoder\.layers\.", "image_encoder.blocks."),
    (r"\.patch_embed\.projection\.", ".patch_embed.proj."),
    (r"\.neck\.conv1\.", ".neck.0."),
    (r"\.neck\.layer_norm1\.", ".neck.1."),
    (r"\.neck\.conv2\.", ".neck.2."),
    (r"\.neck\.layer_norm2\.", ".neck.3."),
    (r"^(shared_image_embedding|prompt_encoder\.shared_embedding)\.positional_embedding$", POSITIONS),
    (r"\.mask_embed\.conv1\.", ".mask_downscaling.0."),
    (r"\.mask_embed\.layer_norm1\.", ".mask_downscaling.1."),
    (r"\.mask_embed\.conv2\.", ".mask_downscaling.3."),
    (r"\.mask_embed\.layer_norm2\.", ".mask_downscaling.4."),
    (r"\.mask_embed\.conv3\.", ".mask_downscaling.6."),
    (r"\.point_embed\.", ".point_embeddings."),
    (r"\.upscale_conv1\.", ".output_upscaling.0."),
    (r"\.upscale_layer_norm\.", ".output_upscaling.1."),
    (r"\.upscale_conv2\.", ".output_upscaling.3."),
    (r"\.layer_norm_final_attn\.", ".norm_final_attn."),
    (r"\.layer_norm(\d)\.", r".norm\1."),
)
# SAM-HQ's own parts, which are not read.
HQ_PARTS = re.compile(
    r"mask_decoder\.(hq_token|hq_mask_mlp|compress_vit_\w+|encoder_\w+|mask_(conv\d|norm))\."
)
HEAD = re.compile(
    r"(?P<head>.*(output_hypernetworks_mlps\.\d+|iou_prediction_head))\.(?P<layer>.+)\.(?P<kind>\w+)"
)


def original_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a folder under the names of `segment_anything`; what SAM-HQ adds is left out."""
    renamed = {}
    for name, value in weights.items():
        if HQ_PARTS.match(name):
            continue
        for pattern, replacement in RULES:
            name = re.sub(pattern, replacement, name)
        renamed[original_layer(name, weights)] = value
    return renamed


def original_layer(name: str, weights: Mapping[str, Tensor]) -> str:
    """proj_in, layers.0, ..., proj_out of a head are layers.0, layers.1, ... there."""
    found = HEAD.fullmatch(name)
    if found is None:
        return name
    head, layer = found["head"], found["layer"]
    if layer == "proj_in":
        number = 0
    elif layer == "proj_out":
        number = 1 + sum(f"{head}.layers.{index}.weight" in weights for index in range(len(weights)))
    else:
        number = 1 + int(layer.removeprefix("layers."))
    return f"{head}.layers.{number}.{found['kind']}"
