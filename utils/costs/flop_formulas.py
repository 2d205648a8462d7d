"""FLOPs of the model's parts as formulas of their sizes.

A multiply-add is 2 FLOPs. Counted are products of matrices and convolutions, as torch's FLOP counter does, with which
the tests compare them. Not counted: norms, softmax, activation functions, dropout, rotary angles, losses and the
optimizer; they take time by the bytes that they move, not by arithmetic. Attention is counted as it runs: all pairs
of a row, also those that a mask hides.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from model.decoders.base import DecoderSettings, enlarged
from model.decoders.geometry import column_bands
from model.decoders.sam import SamSettings
from model.decoders.sam_attention import HEAD_DIM_MULTIPLE, MAX_MASKED_TOKENS
from model.inputs import Size


@dataclass(frozen=True, kw_only=True)
class Flops:
    """FLOPs of one part.

    The backward pass of a product with an operand that needs no gradient is one product, else two. `extra` is
    computed beyond that and does not count as work of the model (Chowdhery et al., "PaLM", 2022, appendix B):
    recomputation by checkpointing, and the wider heads of SAM's folded attention.
    """

    forward: float = 0.0
    backward: float = 0.0
    extra: float = 0.0

    @property
    def model(self) -> float:
        """FLOPs of the model: forward and backward."""
        return self.forward + self.backward

    @property
    def total(self) -> float:
        """FLOPs computed, `extra` included."""
        return self.forward + self.backward + self.extra

    def __add__(self, other: Flops) -> Flops:
        return Flops(
            forward=self.forward + other.forward,
            backward=self.backward + other.backward,
            extra=self.extra + other.extra,
        )

    def __mul__(self, number: float) -> Flops:
        return Flops(
            forward=self.forward * number,
            backward=self.backward * number,
            extra=self.extra * number,
        )


def total(parts: Iterable[Flops]) -> Flops:
    """Their sum."""
    return sum(parts, Flops())


# ------------------------------------------------------------------------------------------- products


def linear(num: int, size_in: int, size_out: int) -> int:
    """`num` vectors times one matrix."""
    return 2 * num * size_in * size_out


def lora(num: int, size_in: int, size_out: int, rank: int) -> int:
    """`num` vectors through an adapter beside a (size_in, size_out) layer; nothing for rank 0."""
    return linear(num, size_in, rank) + linear(num, rank, size_out)


def attention(num_queries: int, num_keys: int, size: int) -> int:
    """Scores and weighted sum of all heads together, whose widths add up to `size`."""
    return 4 * num_queries * num_keys * size


def learned(forward: int) -> Flops:
    """A layer that trains, on an input that needs a gradient."""
    return Flops(forward=forward, backward=2 * forward)


# -------------------------------------------------------------------------------------- the encoders


def clip_flops(vlm: Any) -> int:
    """CLIP's tower on one image, on the patches and the class token, up to the last layer that LLaVA reads."""
    vision = vlm.vision_config
    states = range(vision.num_hidden_layers + 1)  # state 0 is the first layer's input
    num_layers = max(states[layer] for layer in feature_layers(vlm))
    patches, hidden = (vision.image_size // vision.patch_size) ** 2, vision.hidden_size
    length = patches + 1
    layer = 4 * linear(length, hidden, hidden) + 2 * linear(length, hidden, vision.intermediate_size)
    layer += attention(length, length, hidden)
    return linear(patches, 3 * vision.patch_size**2, hidden) + num_layers * layer


def projector_flops(vlm: Any) -> int:
    """LLaVA's two layers on the features of one image."""
    width = vlm.vision_config.hidden_size * len(feature_layers(vlm))
    hidden = vlm.text_config.hidden_size
    num_tokens = clip_tokens(vlm)
    return linear(num_tokens, width, hidden) + linear(num_tokens, hidden, hidden)


def feature_layers(vlm: Any) -> list[int]:
    """The layers of CLIP that LLaVA reads."""
    layers = vlm.vision_feature_layer
    return [layers] if isinstance(layers, int) else list(layers)


def clip_tokens(vlm: Any) -> int:
    """Features of one image of a LLaVA in the language model's row."""
    vision = vlm.vision_config
    patches = (vision.image_size // vision.patch_size) ** 2
    return patches + (vlm.vision_feature_select_strategy == "full")


def sam_encoder_flops(sam: SamSettings, *, folded: bool) -> Flops:
    """SAM's image encoder on one image; `folded`: as on a GPU."""
    side, dim = sam.grid_size[0], sam.encoder_dim
    num = side**2
    num_global, window = len(sam.encoder_global_blocks), sam.encoder_window_size
    # Windows at the border are padded. On a GPU the padding goes through the attention's layers too; on a CPU one
    # zero, not counted here, stands for all of it (model/decoders/sam_attention.py).
    num_windows = (-(-side // window)) ** 2 if window else 0
    in_windows = attention_layers(num_windows * window**2 if folded else num, dim)
    blocks = sam.encoder_depth * 2 * linear(num, dim, sam.encoder_mlp_dim)
    neck = linear(num, dim, sam.prompt_embed_dim) + linear(
        num, 9 * sam.prompt_embed_dim, sam.prompt_embed_dim
    )
    around = Flops(forward=linear(num, 3 * sam.patch_size**2, dim) + blocks + neck)
    whole = Flops(forward=attention_layers(num, dim)) + sam_attention_flops(sam, side, folded=folded)
    windowed = Flops(forward=in_windows) + sam_attention_flops(sam, window, folded=folded) * num_windows
    return around + whole * num_global + windowed * (sam.encoder_depth - num_global)


def attention_layers(num: int, dim: int) -> int:
    """Queries, keys and values of some tokens, and the layer after the attention."""
    return linear(num, dim, 3 * dim) + linear(num, dim, dim)


def sam_attention_flops(sam: SamSettings, side: int, *, folded: bool) -> Flops:
    """Attention with relative positions on a (side, side) square: one window, or the whole grid; without layers."""
    num, dim = side**2, sam.encoder_dim
    positions = 2 * linear(num, dim, side)  # each query times `side` rows and as many columns, in every head
    # Folded, every head is wider by one entry for each row and column of the square; windows take a mask instead. See
    # model/decoders/sam_attention.py.
    width = dim // sam.encoder_num_heads + 2 * side
    width += -width % HEAD_DIM_MULTIPLE
    wider = (
        attention(num, num, sam.encoder_num_heads * width - dim) if folded and num > MAX_MASKED_TOKENS else 0
    )
    return Flops(forward=attention(num, num, dim) + positions, extra=wider)


# --------------------------------------------------------------------------------- the language model


def query_dim(text: Any) -> int:
    """Width of all query heads together."""
    return text.num_attention_heads * head_dim(text)


def head_dim(text: Any) -> int:
    return getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads


def layer_sizes(text: Any) -> dict[str, tuple[int, int]]:
    """(in, out) of the linear layers of one decoder layer, by the names they have in LLaMA."""
    hidden, mlp = text.hidden_size, text.intermediate_size
    queries, keys = query_dim(text), text.num_key_value_heads * head_dim(text)
    return {
        "q_proj": (hidden, queries),
        "k_proj": (hidden, keys),
        "v_proj": (hidden, keys),
        "o_proj": (queries, hidden),
        "gate_proj": (hidden, mlp),
        "up_proj": (hidden, mlp),
        "down_proj": (mlp, hidden),
    }


# --------------------------------------------------------------------------------------- mask decoder


@dataclass(frozen=True, kw_only=True)
class TwoWayDecoder:
    """Sizes of a mask decoder of the SAM family: a two-way transformer, upsampling, a network for each output."""

    dim: int
    inner: int  # width of the attention between tokens and image
    mlp: int
    depth: int
    pixels: int  # of the image embedding
    num_outputs: int
    num_predictions: int  # of quality and presence: they have a token of their own, and are not made

    def for_a_mask(self) -> Flops:
        """For one [SEG], the mask of the first output, without the positions; all that runs trains."""
        dim, inner, pixels = self.dim, self.inner, self.pixels
        tokens = self.num_predictions + self.num_outputs + 1  # and the [SEG]
        to_tokens, to_pixels = linear(tokens, dim, inner), linear(pixels, dim, inner)
        between = attention(tokens, pixels, inner)
        token_to_image = 2 * to_tokens + 2 * to_pixels + between
        block = (
            4 * linear(tokens, dim, dim)
            + attention(tokens, tokens, dim)
            + token_to_image
            + 2 * linear(tokens, dim, self.mlp)
            + 2 * to_tokens + 2 * to_pixels + between
        )  # fmt: skip
        # Two transposed convolutions double the sides: each pixel gives four.
        upscaling = linear(pixels, dim, 4 * (dim // 4)) + linear(4 * pixels, dim // 4, 4 * (dim // 8))
        hypernetworks = self.num_outputs * (2 * linear(1, dim, dim) + linear(1, dim, dim // 8))
        masks = linear(16 * pixels, dim // 8, 1)
        trained = self.depth * block + token_to_image + upscaling + hypernetworks + masks
        # In the first block the image embedding comes from frozen parts: its three layers pass no gradient on.
        return Flops(forward=trained, backward=2 * trained - 3 * to_pixels)

    def for_positions(self) -> Flops:
        """Once for all masks: each attention between tokens and image projects the positions."""
        # One more token is zero: what is projected of it is the bias.
        forward = (2 * self.depth + 1) * linear(self.pixels + 1, self.dim, self.inner)
        return Flops(forward=forward, backward=forward)  # of the weights alone


def mask_resize_flops(sam: DecoderSettings, resized_size: Size, original_size: Size) -> Flops:
    """One mask to its image's original size, as matrix products; two gradients come back, one of each loss."""
    (height, width), grid = original_size, sam.mask_side
    side, inside = enlarged(sam, resized_size)
    bands = column_bands(grid, side, inside[1], width)
    columns = sum((outer.stop - outer.start) * (inner.stop - inner.start) for outer, inner in bands)
    once = linear(height, grid, grid) + 2 * height * columns
    return Flops(forward=once, backward=2 * once)
