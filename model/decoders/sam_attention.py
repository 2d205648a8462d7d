"""Attention of SAM's image encoder with PyTorch's fused kernels, mathematically equal to segment_anything's.

A score is q . k / sqrt(d) + rel_h[q, row of k] + rel_w[q, column of k] (decomposed relative position embeddings of
MViTv2, arXiv 2112.01526). segment_anything materializes the scores of all heads several times: 800 MB each for
ViT-B's 4096 tokens. Three exact implementations need far less memory:

- *In chunks* (`attend_in_pieces`): the bias is an additive mask of `scaled_dot_product_attention`, for so few queries
  at a time that it fits into the CPU cache. On a CPU this costs hardly more than attention without a bias. On a GPU
  an additive mask rules out flash kernels, and small chunks would leave it idle.
- *With a mask* (`attend_with_mask`): one additive mask for all queries. The fastest on a GPU for windows of 14 x 14
  tokens, where the bias is small (half the time of the folded implementation on an H100).
- *Folded* (`attend_folded`): rel_h and rel_w are concatenated to q, the one-hot row and column to k, so one longer
  dot product gives the whole score, and no (tokens, tokens) tensor exists. Flash kernels support it: ViT-H's head
  dimension becomes 80 + 64 + 64, a multiple of 8 below their limit of 256. It needs two to three times the FLOPs of
  the chunks, which is slower on a CPU; a GPU saves writing and reading a mask (0.6 of the time for 64 x 64 tokens on
  an H100). Its backward is fused as well.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from segment_anything.modeling import ImageEncoderViT
from segment_anything.modeling.image_encoder import Attention
from torch import Tensor, nn

# Entries of the bias per chunk and thread: 4 MB in float32, about the last-level cache per core.
ENTRIES_PER_THREAD = 1 << 20
# Up to this number of tokens a mask is faster than folding on a GPU. SAM's windows have 196 tokens, its grid 4096.
MAX_MASKED_TOKENS = 1024
# Fused kernels on a GPU need a head dimension that is a multiple of this.
HEAD_DIM_MULTIPLE = 8

Attend = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]  # (q, k, v, rel_h, rel_w)


class FusedAttention(nn.Module):
    """Replaces an `Attention` of segment_anything and keeps its weights under the same names."""

    def __init__(self, eager: Attention) -> None:
        super().__init__()
        assert eager.use_rel_pos, "only encoders with relative position embeddings are supported"
        self.num_heads = eager.num_heads
        self.qkv, self.proj = eager.qkv, eager.proj
        self.rel_pos_h, self.rel_pos_w = eager.rel_pos_h, eager.rel_pos_w

    def forward(self, x: Tensor, attend: Attend | None = None) -> Tensor:
        """(n, height, width, dim) -> the same shape; n is the number of images, or of the windows of all images.

        Args:
            attend: one of the three implementations; None: the fastest, see `fastest_way`.
        """
        n, height, width, dim = x.shape
        qkv = self.qkv(x).view(n, height * width, 3, self.num_heads, dim // self.num_heads)
        qkv = qkv.permute(2, 0, 3, 1, 4)
        # Contiguous on a CPU, whose kernels are fastest when the tokens of a head are adjacent in memory.
        q, k, v = (qkv.contiguous() if x.device.type == "cpu" else qkv).unbind(
            0
        )  # (n, heads, tokens, head_dim)
        del qkv
        grid = q.unflatten(2, (height, width))
        rel_h = torch.einsum("nmhwc,hkc->nmhwk", grid, relative_table(self.rel_pos_h, height))
        rel_w = torch.einsum("nmhwc,wkc->nmhwk", grid, relative_table(self.rel_pos_w, width))
        attend = attend or fastest_way(x, learns=q.requires_grad or rel_h.requires_grad)
        attended = attend(q, k, v, rel_h, rel_w)
        return self.proj(attended.transpose(1, 2).reshape(n, height, width, dim))


def fastest_way(x: Tensor, *, learns: bool) -> Attend:
    """The fastest implementation for x (n, height, width, dim) on its device; if `learns`, one with a backward."""
    if x.device.type == "cpu":
        return attend_folded if learns and torch.is_grad_enabled() else attend_in_pieces
    return attend_with_mask if x.shape[1] * x.shape[2] <= MAX_MASKED_TOKENS else attend_folded


def use_fused_attention(encoder: ImageEncoderViT) -> None:
    """Replaces the attention of every block, windowed or global; names and values of the weights are unchanged."""
    for block in encoder.blocks:
        block.attn = FusedAttention(block.attn)


def relative_table(table: Tensor, side: int) -> Tensor:
    """Relative position embeddings (side, side, head_dim), indexed [query, key], for an axis of `side` tokens.

    Args:
        table: (2 * side - 1, head_dim), rows for query - key from 1 - side to side - 1. A table of another length is
            interpolated, as in segment_anything.
    """
    length = 2 * side - 1
    if len(table) != length:
        table = F.interpolate(table.t().unsqueeze(0), size=length, mode="linear").squeeze(0).t()
    positions = torch.arange(side, device=table.device)
    return table[positions[:, None] - positions + (side - 1)]


def attend_in_pieces(q: Tensor, k: Tensor, v: Tensor, rel_h: Tensor, rel_w: Tensor) -> Tensor:
    """Attention with the bias as an additive mask, in chunks of heads and rows of queries; no gradients.

    Args:
        q, k, v: (n, heads, height * width, head_dim), contiguous.
        rel_h, rel_w: (n, heads, height, width, height) and (n, heads, height, width, width), the bias of each query
            for each row and each column of keys.

    Returns:
        (n, heads, height * width, head_dim).
    """
    height, width = rel_h.shape[-1], rel_w.shape[-1]
    num_tokens, shape = height * width, q.shape
    q, k, v, rel_h, rel_w = (part.flatten(0, 1).contiguous() for part in (q, k, v, rel_h, rel_w))
    entries = ENTRIES_PER_THREAD * torch.get_num_threads()
    num_heads = max(1, entries // num_tokens**2)
    num_rows = max(1, min(height, entries // (width * num_tokens)))
    attended = torch.empty_like(q)
    # One buffer for all chunks: allocating memory costs more than the addition whose result is stored in it.
    bias = q.new_empty(min(num_heads, len(q)), num_rows, width, height, width)
    for first in range(0, len(q), num_heads):
        heads = slice(first, first + num_heads)
        for row in range(0, height, num_rows):
            rows, tokens = slice(row, row + num_rows), slice(row * width, (row + num_rows) * width)
            parts = rel_h[heads, rows, :, :, None], rel_w[heads, rows, :, None, :]
            mask = bias[: len(parts[0]), : parts[0].shape[1]]
            torch.add(*parts, out=mask)
            # Fused kernels need four dimensions.
            attended[heads, tokens] = F.scaled_dot_product_attention(
                q[None, heads, tokens],
                k[None, heads],
                v[None, heads],
                attn_mask=mask.flatten(3).flatten(1, 2).unsqueeze(0),
            )[0]
    return attended.view(shape)


def attend_with_mask(q: Tensor, k: Tensor, v: Tensor, rel_h: Tensor, rel_w: Tensor) -> Tensor:
    """Attention with the whole bias as one additive mask; arguments and result as in `attend_in_pieces`."""
    bias = (rel_h.unsqueeze(-1) + rel_w.unsqueeze(-2)).flatten(4).flatten(2, 3)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


def attend_folded(q: Tensor, k: Tensor, v: Tensor, rel_h: Tensor, rel_w: Tensor) -> Tensor:
    """Attention with the bias folded into the dot product; arguments and result as in `attend_in_pieces`."""
    height, width = rel_h.shape[-1], rel_w.shape[-1]
    head_dim = q.shape[-1]
    options = {"dtype": k.dtype, "device": k.device}
    rows = torch.eye(height, **options)[:, None].expand(-1, width, -1).flatten(0, 1)
    columns = torch.eye(width, **options)[None].expand(height, -1, -1).flatten(0, 1)
    padding = -(head_dim + height + width) % HEAD_DIM_MULTIPLE
    where = F.pad(torch.cat([rows, columns], dim=1), (0, padding)).expand(*k.shape[:2], -1, -1)
    bias = torch.cat([rel_h.flatten(2, 3), rel_w.flatten(2, 3)], dim=-1)
    # Only q . k is scaled, the bias is not.
    queries = torch.cat([q * head_dim**-0.5, F.pad(bias, (0, padding))], dim=-1)
    keys = torch.cat([k, where], dim=-1)
    values = F.pad(v, (0, keys.shape[-1] - head_dim))
    return F.scaled_dot_product_attention(queries, keys, values, scale=1.0)[..., :head_dim]
