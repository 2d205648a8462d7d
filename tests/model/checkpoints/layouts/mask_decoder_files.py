"""Names and shapes of the weights in SAM 2's own files; whether a file holds a decoder."""

from __future__ import annotations

import torch

from model.checkpoints.layouts import sam2
from model.checkpoints.layouts.mask_decoder import read_mask_decoder
from model.strict_loading import check_fit


def linear(name, rows, columns):
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}


def norm(name, size):
    return {f"{name}.weight": (size,), f"{name}.bias": (size,)}


def conv(name, *shape, out=None):
    return {f"{name}.weight": shape, f"{name}.bias": (out or shape[0],)}


def attention(name, dim, inner):
    parts = {}
    for part in ("q_proj", "k_proj", "v_proj"):
        parts |= linear(f"{name}.{part}", inner, dim)
    return parts | linear(f"{name}.out_proj", dim, inner)


def published_names(
    size: sam2.Hiera, background: int = 7, dim: int = 256, mlp: int = 2048
) -> dict[str, tuple]:
    """Names and shapes of the weights in sam2*_hiera_*.pt, from the modules of facebookresearch/sam2."""
    trunk = "image_encoder.trunk"
    shapes = {
        f"{trunk}.pos_embed": (1, size.dim, background, background),
        f"{trunk}.pos_embed_window": (1, size.dim, size.windows[0], size.windows[0]),
        **conv(f"{trunk}.patch_embed.proj", size.dim, 3, 7, 7),
    }
    number = 0
    width = size.dim
    for stage, count in enumerate(size.blocks):
        out = size.dim * 2**stage
        for _ in range(count):
            block = f"{trunk}.blocks.{number}"
            shapes |= norm(f"{block}.norm1", width) | norm(f"{block}.norm2", out)
            shapes |= linear(f"{block}.attn.qkv", 3 * out, width) | linear(f"{block}.attn.proj", out, out)
            shapes |= linear(f"{block}.mlp.layers.0", 4 * out, out) | linear(
                f"{block}.mlp.layers.1", out, 4 * out
            )
            if width != out:
                shapes |= linear(f"{block}.proj", out, width)
            number, width = number + 1, out
    for level in range(4):
        shapes |= conv(f"image_encoder.neck.convs.{level}.conv", dim, size.dim * 2 ** (3 - level), 1, 1)
    prompt, decoder = "sam_prompt_encoder", "sam_mask_decoder"
    shapes[f"{prompt}.pe_layer.positional_encoding_gaussian_matrix"] = (2, dim // 2)
    names = [f"point_embeddings.{index}" for index in range(4)] + ["not_a_point_embed", "no_mask_embed"]
    shapes |= {f"{prompt}.{name}.weight": (1, dim) for name in names}
    down = f"{prompt}.mask_downscaling"
    shapes |= conv(f"{down}.0", 4, 1, 2, 2) | norm(f"{down}.1", 4) | conv(f"{down}.3", 16, 4, 2, 2)
    shapes |= norm(f"{down}.4", 16) | conv(f"{down}.6", dim, 16, 1, 1)
    for layer in (f"{decoder}.transformer.layers.{index}" for index in range(2)):
        shapes |= attention(f"{layer}.self_attn", dim, dim)
        for name in ("cross_attn_token_to_image", "cross_attn_image_to_token"):
            shapes |= attention(f"{layer}.{name}", dim, dim // 2)
        for index in range(1, 5):
            shapes |= norm(f"{layer}.norm{index}", dim)
        shapes |= linear(f"{layer}.mlp.layers.0", mlp, dim) | linear(f"{layer}.mlp.layers.1", dim, mlp)
    shapes |= attention(f"{decoder}.transformer.final_attn_token_to_image", dim, dim // 2)
    shapes |= norm(f"{decoder}.transformer.norm_final_attn", dim)
    shapes |= {f"{decoder}.{name}.weight": (1, dim) for name in ("iou_token", "obj_score_token")}
    shapes[f"{decoder}.mask_tokens.weight"] = (4, dim)
    shapes |= conv(f"{decoder}.output_upscaling.0", dim, dim // 4, 2, 2, out=dim // 4)
    shapes |= norm(f"{decoder}.output_upscaling.1", dim // 4)
    shapes |= conv(f"{decoder}.output_upscaling.3", dim // 4, dim // 8, 2, 2, out=dim // 8)
    shapes |= conv(f"{decoder}.conv_s0", dim // 8, dim, 1, 1) | conv(
        f"{decoder}.conv_s1", dim // 4, dim, 1, 1
    )
    heads = {f"output_hypernetworks_mlps.{index}": dim // 8 for index in range(4)}
    for head, out in (heads | {"iou_prediction_head": 4, "pred_obj_score_head": 1}).items():
        inner = 256 if head == "iou_prediction_head" else dim
        for index, (rows, columns) in enumerate(((inner, dim), (inner, inner), (out, inner))):
            shapes |= linear(f"{decoder}.{head}.layers.{index}", rows, columns)
    # Of the video memory a few of each kind.
    memory = {
        "maskmem_tpos_enc": (7, 1, 1, 64), "no_mem_pos_enc": (1, 1, dim), "no_obj_ptr": (1, dim),
        "no_obj_embed_spatial": (1, 64), "mask_downsample.weight": (1, 1, 4, 4), "mask_downsample.bias": (1,),
        "memory_attention.norm.weight": (dim,), "memory_encoder.out_proj.bias": (64,),
        "obj_ptr_proj.layers.0.weight": (dim, dim), "obj_ptr_tpos_proj.weight": (64, dim),
    }  # fmt: skip
    return shapes | {"no_mem_embed": (1, 1, dim)} | memory


def same_weights(path, decoder):
    """Whether what is read at `path` is this decoder."""
    settings, weights = read_mask_decoder(path)
    assert settings == decoder.settings
    expected = decoder.state_dict()
    check_fit(expected, weights, source=str(path))
    assert all(torch.equal(value, expected[name]) for name, value in weights.items())
