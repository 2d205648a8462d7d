"""SAM's mask decoder in fewer, larger operations, mathematically equal to segment_anything's, and those of SAM 2 and
SAM 3's tracker, equal to transformers'.

Both repeat the positions of the image for each mask and add them to its tokens five times, normalise channels in
elementwise operations, upsample in a memory layout that is copied back and forth, multiply all four masks of a
prompt, and predict their quality. Here

- positions are projected once for all masks: proj(x + p) = proj(x) + proj(p) - proj(0);
- the tokens of the image stay in one layout, (masks, tokens, channels). A transposed convolution whose stride is its
  kernel gives each token pixels of its own, so it is a matrix product; the pixels are put into their places at the
  end, when one number is left of each;
- attention runs in PyTorch's fused kernels where they are faster;
- only the mask that is read is made.

A training step on a CPU with cached embeddings and ten masks of a 64 x 64 grid takes 0.7 of its time before
(`python -m benchmarks.train_step`); a GPU runs far fewer kernels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from segment_anything.modeling import MaskDecoder
from torch import Tensor, nn
from transformers.models.sam2.modeling_sam2 import Sam2MaskDecoder
from transformers.models.sam3_tracker.modeling_sam3_tracker import Sam3TrackerMaskDecoder


@dataclass(frozen=True)
class Names:
    """What the library that a decoder comes from calls its parts; weights keep these names."""

    out: str  # the last projection of an attention
    norm: str
    num_heads: str


SEGMENT_ANYTHING = Names(out="out_proj", norm="norm", num_heads="num_heads")
TRANSFORMERS = Names(out="o_proj", norm="layer_norm", num_heads="num_attention_heads")
ATTENTIONS = ("_attn", "_to_image", "_to_token")  # how the names of a block's attentions end


class TokenAttention(nn.Module):
    """Replaces an attention of the decoder; positions are given apart from the tokens."""

    def __init__(self, eager: nn.Module, names: Names) -> None:
        super().__init__()
        self.num_heads, self.names = getattr(eager, names.num_heads), names
        for name in ("q_proj", "k_proj", "v_proj", names.out):
            self.add_module(name, getattr(eager, name))

    def forward(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        *,
        query_positions: Tensor | None = None,
        key_positions: Tensor | None = None,
    ) -> Tensor:
        """(n, queries, dim), (n, keys, dim), (n, keys, dim) -> (n, queries, dim).

        Args:
            query_positions, key_positions: (1, queries, dim), (1, keys, dim), added to the queries and keys of all.
        """
        q = self._heads(projected(self.q_proj, queries, query_positions))
        k = self._heads(projected(self.k_proj, keys, key_positions))
        v = self._heads(self.v_proj(values))
        if q.device.type == "cpu" and q.dtype in (torch.bfloat16, torch.float16):
            # The fused kernel is slow for a few tokens in 16 bits on a CPU.
            attended = torch.softmax((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2), dim=-1) @ v
        else:
            attended = F.scaled_dot_product_attention(q, k, v)
        return self.get_submodule(self.names.out)(attended.transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        """(n, tokens, dim) -> (n, heads, tokens, head_dim)."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


def projected(layer: nn.Module, x: Tensor, positions: Tensor | None) -> Tensor:
    """`layer(x + positions)` of a linear layer: x (n, tokens, dim), positions (1, tokens, dim) or None."""
    result = layer(x)
    if positions is not None:
        # The layer is called, and its bias not read: under ZeRO-3 weights are there while their module runs.
        result += layer(positions) - layer(torch.zeros_like(positions[:, :1]))
    return result


class TwoWayBlock(nn.Module):
    """Replaces a block of the decoder's transformer and keeps its weights under the same names."""

    def __init__(self, eager: nn.Module, names: Names) -> None:
        super().__init__()
        self.is_first, self.names = eager.skip_first_layer_pe, names
        # In the order of the library: optimizer states keep it.
        for name, part in eager.named_children():
            self.add_module(name, TokenAttention(part, names) if name.endswith(ATTENTIONS) else part)

    def forward(
        self, tokens: Tensor, image: Tensor, prompts: Tensor, positions: Tensor
    ) -> tuple[Tensor, Tensor]:
        """New tokens and image.

        Args:
            tokens: (n, tokens, dim), and prompts of the same shape, as they were before the first block.
            image: (n, pixels, dim), with positions (1, pixels, dim).
        """
        norms = [self.get_submodule(f"{self.names.norm}{i}") for i in range(1, 5)]
        if self.is_first:
            tokens = self.self_attn(tokens, tokens, tokens)
        else:
            placed = tokens + prompts
            tokens = tokens + self.self_attn(placed, placed, tokens)
        tokens = norms[0](tokens)
        attended = self.cross_attn_token_to_image(tokens + prompts, image, image, key_positions=positions)
        tokens = norms[1](tokens + attended)
        tokens = norms[2](tokens + self.mlp(tokens))
        attended = self.cross_attn_image_to_token(image, tokens + prompts, tokens, query_positions=positions)
        return tokens, norms[3](image + attended)


class FusedTwoWayTransformer(nn.Module):
    """Replaces the decoder's transformer and keeps its weights under the same names."""

    def __init__(self, eager: nn.Module, names: Names) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TwoWayBlock(layer, names) for layer in eager.layers)
        self.final_attn_token_to_image = TokenAttention(eager.final_attn_token_to_image, names)
        self.last_norm = f"{names.norm}_final_attn"
        self.add_module(self.last_norm, getattr(eager, self.last_norm))

    def forward(self, prompts: Tensor, image: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Arguments and results as in `TwoWayBlock`."""
        tokens = prompts
        for layer in self.layers:
            tokens, image = layer(tokens, image, prompts, positions)
        attended = self.final_attn_token_to_image(tokens + prompts, image, image, key_positions=positions)
        return self.get_submodule(self.last_norm)(tokens + attended), image


class PixelDoubling(nn.Module):
    """Replaces a transposed convolution of kernel 2 and stride 2: each token becomes 2 x 2 pixels."""

    def __init__(self, eager: nn.ConvTranspose2d) -> None:
        super().__init__()
        assert eager.kernel_size == eager.stride == (2, 2)
        assert eager.groups == 1
        self.weight, self.bias = eager.weight, eager.bias

    def forward(self, x: Tensor) -> Tensor:
        """(..., channels) -> (..., 2, 2, new channels), rows first."""
        channels, new = self.weight.shape[:2]
        weight = self.weight.permute(2, 3, 1, 0).reshape(4 * new, channels)
        bias = None if self.bias is None else self.bias.repeat(4)
        return F.linear(x, weight, bias).unflatten(-1, (2, 2, new))


class ChannelNorm(nn.Module):
    """Replaces a norm over the channels of (n, channels, height, width); here they are last."""

    def __init__(self, eager: nn.Module) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = eager.weight, eager.bias, eager.eps

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.weight, self.bias, self.eps)


class FusedMaskDecoder(nn.Module):
    """Replaces a `MaskDecoder` of segment_anything and keeps its weights under the same names."""

    def __init__(self, eager: MaskDecoder) -> None:
        super().__init__()
        self.transformer = FusedTwoWayTransformer(eager.transformer, SEGMENT_ANYTHING)
        self.iou_token, self.mask_tokens = eager.iou_token, eager.mask_tokens
        first, norm, activation, second, last = eager.output_upscaling
        self.output_upscaling = nn.Sequential(
            PixelDoubling(first), ChannelNorm(norm), activation, PixelDoubling(second), last
        )
        self.output_hypernetworks_mlps = eager.output_hypernetworks_mlps
        self.iou_prediction_head = eager.iou_prediction_head

    def forward(self, prompts: Tensor, image: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """The first mask of each prompt, which is that of `multimask_output=False`.

        Args:
            prompts: (n, K, dim), K tokens are the sparse prompt of a mask.
            image: (n, dim, height, width), the image embedding and the dense prompt of each mask, added.
            positions: (1, dim, height, width).

        Returns:
            Logits (n, 4 * height, 4 * width), and the tokens (n, dim) from which `iou_prediction_head` predicts the
            quality of the masks.
        """
        own = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
        tokens, pixels = transformed(self.transformer, own, prompts, image, positions)
        kernels = mask_kernels(self.output_hypernetworks_mlps, tokens[:, 1:])
        pixels = self.output_upscaling(pixels)  # (n, height * width, 2, 2, 2, 2, dim / 8)
        return in_place(pixels.flatten(1, -2) @ kernels, image.shape[-2:]), tokens[:, 0]


class FusedFineMaskDecoder(nn.Module):
    """Replaces the mask decoder of SAM 2 or of SAM 3's tracker and keeps its weights under the same names."""

    def __init__(self, eager: Sam2MaskDecoder | Sam3TrackerMaskDecoder) -> None:
        super().__init__()
        replaced: dict[str, nn.Module] = {
            "transformer": FusedTwoWayTransformer(eager.transformer, TRANSFORMERS),
            "upscale_conv1": PixelDoubling(eager.upscale_conv1),
            "upscale_conv2": PixelDoubling(eager.upscale_conv2),
            "upscale_layer_norm": ChannelNorm(eager.upscale_layer_norm),
        }
        for name, part in eager.named_children():
            self.add_module(name, replaced.get(name, part))

    def forward(
        self, prompts: Tensor, image: Tensor, positions: Tensor, fine: Tensor, middle: Tensor
    ) -> tuple[Tensor, Tensor]:
        """As `FusedMaskDecoder`, with the finer levels that are added while pixels are doubled.

        Args:
            fine: (n, dim / 8, 4 * height, 4 * width).
            middle: (n, dim / 4, 2 * height, 2 * width).
        """
        own = torch.cat([self.obj_score_token.weight, self.iou_token.weight, self.mask_tokens.weight])
        tokens, pixels = transformed(self.transformer, own, prompts, image, positions)
        kernels = mask_kernels(self.output_hypernetworks_mlps, tokens[:, 2:])
        height, width = image.shape[-2:]
        # (n, height * width, row and column of the first doubling, of the second, channels).
        level = middle.unflatten(2, (height, 2)).unflatten(-1, (width, 2)).permute(0, 2, 4, 3, 5, 1)
        pixels = self.activation(self.upscale_layer_norm(self.upscale_conv1(pixels) + level.flatten(1, 2)))
        level = fine.unflatten(2, (height, 2, 2)).unflatten(-1, (width, 2, 2)).permute(0, 2, 5, 3, 6, 4, 7, 1)
        pixels = self.activation(self.upscale_conv2(pixels) + level.flatten(1, 2))
        return in_place(pixels.flatten(1, -2) @ kernels, (height, width)), tokens[:, 1]


def transformed(
    transformer: FusedTwoWayTransformer, own: Tensor, prompts: Tensor, image: Tensor, positions: Tensor
) -> tuple[Tensor, Tensor]:
    """The decoder's own tokens and the prompts, (n, tokens, dim), and the pixels, (n, height * width, dim)."""
    return transformer(
        torch.cat([own.expand(len(prompts), -1, -1), prompts], dim=1),
        image.flatten(2).transpose(1, 2).contiguous(),
        positions.flatten(2).transpose(1, 2),
    )


def mask_kernels(networks: nn.ModuleList, tokens: Tensor) -> Tensor:
    """(n, channels, 1): what a pixel of the first mask is multiplied with.

    The other masks' networks get gradients of zero, as in the libraries: the optimizer expects them.
    """
    kernels = torch.stack([network(tokens[:, i]) for i, network in enumerate(networks)], dim=1)
    return kernels[:, 0].unsqueeze(-1)


def in_place(logits: Tensor, size: tuple[int, ...]) -> Tensor:
    """(n, height * width * 16, 1), of a token's two doublings one after the other -> (n, 4 * height, 4 * width)."""
    height, width = size
    # (row, column) of the token, of the first doubling, of the second.
    logits = logits.view(-1, height, width, 2, 2, 2, 2).permute(0, 1, 3, 5, 2, 4, 6)
    return logits.reshape(-1, 4 * height, 4 * width)
