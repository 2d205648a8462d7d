"""FLOPs of each kind of mask decoder: SAM, SAM 2, SAM 3's tracker and its detector."""

from __future__ import annotations

from typing import Any

from model.decoders.base import DecoderSettings
from model.decoders.concept_settings import ConceptSettings
from model.decoders.sam import SamSettings
from model.decoders.sam2 import Sam2Settings
from model.decoders.sam2_config import side_of
from utils.costs.concept_flops import drawing, level_flops, looking, neck_flops
from utils.costs.flop_formulas import (
    Flops,
    TwoWayDecoder,
    attention,
    linear,
    sam_encoder_flops,
)


def encoder_flops(settings: DecoderSettings, *, folded: bool) -> Flops:
    """The image encoder on one image; `folded`: how SAM's attention runs on a GPU."""
    if isinstance(settings, SamSettings):
        return sam_encoder_flops(settings, folded=folded)
    if isinstance(settings, ConceptSettings):  # its neck is computed with the classes
        return sam3_vit_flops(settings.config.vision_config, settings.grid_size[0])
    assert isinstance(settings, Sam2Settings), f"a decoder of kind {settings.kind!r}"
    flops = hiera_flops(settings) if settings.kind == "sam2" else sam3_encoder_flops(settings)
    # The two finer levels are made narrow here, once an image.
    dim, side = settings.prompt_embed_dim, settings.grid_size[0]
    narrow = linear(16 * side**2, dim, dim // 8) + linear(4 * side**2, dim, dim // 4)
    return flops + Flops(forward=narrow)


def decoder_flops(settings: DecoderSettings) -> Flops:
    """The mask decoder for one [SEG]; what it computes once for all masks is in `mask_head_flops`."""
    if isinstance(settings, ConceptSettings):
        return looking(settings) + drawing(settings)
    return two_way(settings).for_a_mask()


def two_way(settings: DecoderSettings) -> TwoWayDecoder:
    """The sizes of a decoder that draws one mask for a [SEG]."""
    dim, pixels = settings.prompt_embed_dim, settings.grid_size[0] * settings.grid_size[1]
    if isinstance(settings, SamSettings):
        return TwoWayDecoder(
            dim=dim,
            inner=dim // settings.decoder_downsample_rate,
            mlp=settings.decoder_mlp_dim,
            depth=settings.decoder_depth,
            pixels=pixels,
            num_outputs=settings.num_multimask_outputs + 1,
            num_predictions=1,
        )
    assert isinstance(settings, Sam2Settings), f"a decoder of kind {settings.kind!r}"
    config = settings.config.mask_decoder_config
    return TwoWayDecoder(
        dim=dim,
        inner=dim // config.attention_downsample_rate,
        mlp=config.mlp_dim,
        depth=config.num_hidden_layers,
        pixels=pixels,
        num_outputs=config.num_multimask_outputs + 1,
        num_predictions=2,
    )


def mask_head_flops(
    settings: DecoderSettings, *, num_masks: int, num_images: int = 1, num_absent: int = 0
) -> Flops:
    """Everything between the images' embeddings and the masks of a micro-batch.

    `num_absent`: classes with a [NEG], which a concept head looks for too.
    """
    flops = decoder_flops(settings) * num_masks
    if not isinstance(settings, ConceptSettings):
        return flops + two_way(settings).for_positions()
    flops += neck_flops(settings) * num_images
    if num_absent:
        flops += neck_flops(settings, 1) * num_images + looking(settings) * num_absent
    return flops


def hiera_flops(settings: Sam2Settings) -> Flops:
    """The image encoder of SAM 2: four stages, each with half the side and twice the width, and the neck."""
    vision = settings.config.vision_config
    trunk = vision.backbone_config
    side, dim = settings.image_size // side_of(trunk.patch_stride), trunk.hidden_size
    forward = linear(side**2, 3 * side_of(trunk.patch_kernel_size) ** 2, dim)
    extra = number = 0
    for stage, (count, out) in enumerate(zip(trunk.blocks_per_stage, trunk.embed_dim_per_stage, strict=True)):
        heads = trunk.num_attention_heads_per_stage[stage]
        for block in range(count):
            is_pooled = block == 0 and 0 < stage <= trunk.num_query_pool_stages
            # The first block of a stage still has the windows of the stage before.
            window = trunk.window_size_per_stage[max(stage - 1, 0) if block == 0 else stage]
            window = side if number in trunk.global_attention_blocks else window
            num_windows = (-(-side // window)) ** 2
            num_keys, stride = window**2, 2 if is_pooled else 1
            num_queries = (window // stride) ** 2
            forward += num_windows * (
                linear(num_keys, dim, 3 * out)
                + attention(num_queries, num_keys, out)
                + linear(num_queries, out, out)
            )
            # The library also multiplies the heads of each place with one another, and drops the product.
            extra += num_windows * num_keys * linear(heads, out // heads, heads)
            if dim != out:
                forward += linear(side**2, dim, out)
            side //= stride
            forward += 2 * linear(side**2, out, int(out * trunk.mlp_ratio))
            dim, number = out, number + 1
        forward += linear(side**2, out, vision.fpn_hidden_size)  # of the neck
    return Flops(forward=forward, extra=extra)


def sam3_encoder_flops(settings: Sam2Settings) -> Flops:
    """The image encoder of SAM 3's tracker: a ViT, and a neck that makes every level from its last layer."""
    vision, side = settings.config.vision_config, settings.grid_size[0]
    width, dim = vision.backbone_config.hidden_size, vision.fpn_hidden_size
    neck = sum(level_flops(side**2, width, dim, scale) for scale in vision.scale_factors)
    return sam3_vit_flops(vision, side) + Flops(forward=neck)


def sam3_vit_flops(vision: Any, side: int) -> Flops:
    """The ViT of SAM 3, whose layers attend within windows or globally, on a grid of `side` x `side` patches."""
    vit, num = vision.backbone_config, side**2
    dim, window = vit.hidden_size, vit.window_size
    num_global = len([index for index in vit.global_attn_indexes if index < vit.num_hidden_layers])
    num_windows = (-(-side // window)) ** 2
    forward = linear(num, 3 * side_of(vit.patch_size) ** 2, dim)
    forward += vit.num_hidden_layers * 2 * linear(num, dim, vit.intermediate_size)
    for count, number, length in (
        (num_global, 1, num),
        (vit.num_hidden_layers - num_global, num_windows, window**2),
    ):
        forward += count * number * (4 * linear(length, dim, dim) + attention(length, length, dim))
    return Flops(forward=forward)
