"""SAM's mask decoder in fewer, larger operations, mathematically equal to segment_anything's.

segment_anything repeats the positions of the image for each mask and adds them to its tokens five times, normalises
channels in eight elementwise operations, upsamples in a memory layout that is copied back and forth, multiplies all
four masks of a prompt, and predicts their quality. Here

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

import torch
import torch.nn.functional as F
from segment_anything.modeling import MaskDecoder, TwoWayTransformer
from segment_anything.modeling.common import LayerNorm2d
from segment_anything.modeling.transformer import Attention, TwoWayAttentionBlock
from torch import Tensor, nn


class TokenAttention(nn.Module):
    """Replaces an `Attention` of segment_anything's decoder; positions are given apart from the tokens."""

    def __init__(self, eager: Attention) -> None:
        super().__init__()
        self.num_heads = eager.num_heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (
            eager.q_proj, eager.k_proj, eager.v_proj, eager.out_proj
        )  # fmt: skip

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
        return self.out_proj(attended.transpose(1, 2).flatten(2))

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
    """Replaces a `TwoWayAttentionBlock` of segment_anything and keeps its weights under the same names."""

    def __init__(self, eager: TwoWayAttentionBlock) -> None:
        super().__init__()
        self.self_attn, self.norm1 = TokenAttention(eager.self_attn), eager.norm1
        self.cross_attn_token_to_image = TokenAttention(eager.cross_attn_token_to_image)
        self.norm2, self.mlp, self.norm3, self.norm4 = eager.norm2, eager.mlp, eager.norm3, eager.norm4
        self.cross_attn_image_to_token = TokenAttention(eager.cross_attn_image_to_token)
        self.is_first = eager.skip_first_layer_pe

    def forward(
        self, tokens: Tensor, image: Tensor, prompts: Tensor, positions: Tensor
    ) -> tuple[Tensor, Tensor]:
        """New tokens and image.

        Args:
            tokens: (n, tokens, dim), and prompts of the same shape, as they were before the first block.
            image: (n, pixels, dim), with positions (1, pixels, dim).
        """
        if self.is_first:
            tokens = self.self_attn(tokens, tokens, tokens)
        else:
            placed = tokens + prompts
            tokens = tokens + self.self_attn(placed, placed, tokens)
        tokens = self.norm1(tokens)
        attended = self.cross_attn_token_to_image(tokens + prompts, image, image, key_positions=positions)
        tokens = self.norm2(tokens + attended)
        tokens = self.norm3(tokens + self.mlp(tokens))
        attended = self.cross_attn_image_to_token(image, tokens + prompts, tokens, query_positions=positions)
        return tokens, self.norm4(image + attended)


class FusedTwoWayTransformer(nn.Module):
    """Replaces a `TwoWayTransformer` of segment_anything and keeps its weights under the same names."""

    def __init__(self, eager: TwoWayTransformer) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TwoWayBlock(layer) for layer in eager.layers)
        self.final_attn_token_to_image = TokenAttention(eager.final_attn_token_to_image)
        self.norm_final_attn = eager.norm_final_attn

    def forward(self, prompts: Tensor, image: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Arguments and results as in `TwoWayBlock`."""
        tokens = prompts
        for layer in self.layers:
            tokens, image = layer(tokens, image, prompts, positions)
        attended = self.final_attn_token_to_image(tokens + prompts, image, image, key_positions=positions)
        return self.norm_final_attn(tokens + attended), image


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
    """Replaces a `LayerNorm2d` of segment_anything; channels are last."""

    def __init__(self, eager: LayerNorm2d) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = eager.weight, eager.bias, eager.eps

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.weight, self.bias, self.eps)


class FusedMaskDecoder(nn.Module):
    """Replaces a `MaskDecoder` of segment_anything and keeps its weights under the same names."""

    def __init__(self, eager: MaskDecoder) -> None:
        super().__init__()
        self.transformer = FusedTwoWayTransformer(eager.transformer)
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
        height, width = image.shape[-2:]
        own = torch.cat([self.iou_token.weight, self.mask_tokens.weight]).expand(len(prompts), -1, -1)
        tokens, pixels = self.transformer(
            torch.cat([own, prompts], dim=1),
            image.flatten(2).transpose(1, 2).contiguous(),
            positions.flatten(2).transpose(1, 2),
        )
        # The other masks' networks get gradients of zero, as in segment_anything: the optimizer expects them.
        kernels = torch.stack(
            [network(tokens[:, 1 + i]) for i, network in enumerate(self.output_hypernetworks_mlps)], dim=1
        )
        pixels = self.output_upscaling(pixels)  # (n, height * width, 2, 2, 2, 2, dim / 8)
        logits = pixels.flatten(1, -2) @ kernels[:, 0].unsqueeze(-1)
        # (row, column) of the token, of the first doubling, of the second.
        logits = logits.view(-1, height, width, 2, 2, 2, 2).permute(0, 1, 3, 5, 2, 4, 6)
        return logits.reshape(-1, 4 * height, 4 * width), tokens[:, 0]
