"""Attention of SAM's image encoder with PyTorch's fast kernels, mathematically equal to segment_anything's.

A score is q . k / sqrt(d) + rel_h[q, row of k] + rel_w[q, column of k] (decomposed relative position embeddings of
MViTv2, arXiv 2112.01526). segment_anything materializes the scores of all heads several times: 800 MB each for
ViT-B's 4096 tokens. Three exact implementations need far less memory:

- *In chunks* (`attend_in_pieces`): the scores of so few queries at a time that they stay in the CPU cache, in one
  buffer. The bias is written into it, q . k added to it by the matrix multiplication, and the softmax taken in place.
  The fastest on a CPU in float32.
- *With a mask* (`attend_with_mask`): one additive mask of `scaled_dot_product_attention` for all queries. The fastest
  on a GPU for windows of 14 x 14 tokens, where the bias is small (half the time of the folded implementation on an
  H100).
- *Folded* (`attend_folded`): rel_h and rel_w are concatenated to q, the one-hot row and column to k, so one longer
  dot product gives the whole score, and no (tokens, tokens) tensor exists. Flash kernels support it: ViT-H's head
  dimension becomes 80 + 64 + 64, a multiple of 8 below their limit of 256. It needs two to three times the FLOPs of
  the chunks, which is slower on a CPU in float32; in bfloat16, where AMX multiplies matrices and a mask is slow to
  add, it is faster (0.7 of the time). A GPU saves writing and reading a mask (0.6 of the time for 64 x 64 tokens on
  an H100). Its backward is fused as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product

import torch
import torch.nn.functional as F
from segment_anything.modeling.image_encoder import Attention
from torch import Tensor, nn

# Scores per chunk and thread: 2 MB in float32, about the second-level cache of a core.
ENTRIES_PER_THREAD = 1 << 19
# Tokens of one matrix product: memory for larger results comes fresh from the system, which clears it first.
TOKENS_PER_CALL = 1024
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

    def forward(self, x: Tensor, attend: Attend | None = None, *, window_size: int | None = None) -> Tensor:
        """(n, height, width, dim) -> the same shape; n is the number of images, or of the windows of all images.

        Args:
            attend: one of the three implementations; None: the fastest, see `fastest_way`.
            window_size: tokens attend within windows of this side, the last of which are padded with zeros, or in the
                whole image (0), without gradients; None: the same as 0, with them.
        """
        attend = attend or fastest_way(x, learns=x.requires_grad or self.qkv.weight.requires_grad)
        if window_size is not None:
            return self._in_windows(x, attend, window_size)
        n, height, width, dim = x.shape
        qkv = self.qkv(x).view(n, height * width, 3, self.num_heads, dim // self.num_heads)
        attended = self._attend(qkv.permute(2, 0, 3, 1, 4), height, width, attend)
        return self.proj(attended.transpose(1, 2).reshape(n, height, width, dim))

    def _attend(self, qkv: Tensor, height: int, width: int, attend: Attend) -> Tensor:
        """(3, n, heads, height * width, head_dim) -> (n, heads, height * width, head_dim)."""
        # Contiguous on a CPU, whose kernels are fastest when the tokens of a head are adjacent in memory.
        q, k, v = qkv.contiguous() if qkv.device.type == "cpu" else qkv
        del qkv
        grid = q.unflatten(2, (height, width))
        rel_h = torch.einsum("nmhwc,hkc->nmhwk", grid, relative_table(self.rel_pos_h, height))
        rel_w = torch.einsum("nmhwc,wkc->nmhwk", grid, relative_table(self.rel_pos_w, width))
        return attend(q, k, v, rel_h, rel_w)

    def _in_windows(self, x: Tensor, attend: Attend, window_size: int) -> Tensor:
        """As `forward`, one row of windows after the other.

        Queries, keys and values of padding are those of a zero, the bias of `qkv`: padding is neither multiplied nor
        projected, and each number is copied once into a window and once back.
        """
        num_images, height, width, dim = x.shape
        rows, columns = (window_size, window_size) if window_size else (height, width)
        heads = self.num_heads, dim // self.num_heads
        rows_per_call = max(1, TOKENS_PER_CALL // width)
        qkv = x.new_empty(3, -(-width // columns), self.num_heads, rows, columns, heads[1])
        has_padding = bool(height % rows or width % columns)
        padding = self.qkv(x.new_zeros(1, dim)).view(3, 1, self.num_heads, 1, 1, -1) if has_padding else None
        result = torch.empty_like(x)
        for image, top in product(range(num_images), range(0, height, rows)):
            band = slice(top, top + rows)
            if padding is not None:
                qkv.copy_(padding)
            for first, part in numbered(x[image, band], rows_per_call):
                tokens = self.qkv(part).unflatten(-1, (3, *heads))
                for window, columns_of_it in parts_of(qkv.transpose(0, 1), tokens, columns, first):
                    window.copy_(columns_of_it.permute(2, 3, 0, 1, 4))
            attended = self._attend(qkv.flatten(3, 4), rows, columns, attend).unflatten(2, (rows, columns))
            for first, part in numbered(result[image, band], rows_per_call):
                tokens = torch.empty_like(part).unflatten(-1, heads)
                for window, columns_of_it in parts_of(attended, tokens, columns, first):
                    columns_of_it.copy_(window.permute(1, 2, 0, 3))
                part.copy_(self.proj(tokens.flatten(2)))
        return result


def numbered(rows: Tensor, size: int) -> Iterator[tuple[int, Tensor]]:
    """The parts of at most `size` rows, each with the number of its first."""
    return zip(range(0, len(rows), size), rows.split(size), strict=True)


def parts_of(windows: Tensor, tokens: Tensor, side: int, first: int) -> Iterator[tuple[Tensor, Tensor]]:
    """For each window the part that some rows of tokens fill, and those tokens.

    Args:
        windows: (windows, ..., rows, side, head_dim), side by side.
        tokens: (some of the rows, width, ...), the first of which is row `first` of the windows.
    """
    for window, part in zip(windows, tokens.split(side, dim=1), strict=True):
        yield window[..., first : first + len(part), : part.shape[1], :], part


def fastest_way(x: Tensor, *, learns: bool) -> Attend:
    """The fastest implementation for x (n, height, width, dim) on its device; if `learns`, one with a backward."""
    if x.device.type == "cpu":
        in_half = x.dtype in (torch.bfloat16, torch.float16)
        return attend_folded if in_half or (learns and torch.is_grad_enabled()) else attend_in_pieces
    return attend_with_mask if x.shape[1] * x.shape[2] <= MAX_MASKED_TOKENS else attend_folded


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


@torch.compiler.disable  # traced for all sizes, views of the buffer are refused; a compiler has nothing to fuse here
def attend_in_pieces(q: Tensor, k: Tensor, v: Tensor, rel_h: Tensor, rel_w: Tensor) -> Tensor:
    """Attention in chunks of heads and rows of queries, whose scores share one buffer; no gradients.

    Args:
        q, k, v: (n, heads, height * width, head_dim), contiguous.
        rel_h, rel_w: (n, heads, height, width, height) and (n, heads, height, width, width), the bias of each query
            for each row and each column of keys.

    Returns:
        (n, heads, height * width, head_dim).
    """
    height, width = rel_h.shape[-1], rel_w.shape[-1]
    num_tokens, shape = height * width, q.shape
    q, k, v, rel_h, rel_w = (part.flatten(0, 1) for part in (q, k, v, rel_h, rel_w))
    entries = ENTRIES_PER_THREAD * torch.get_num_threads()
    num_heads = max(1, min(len(q), entries // num_tokens**2))
    num_rows = max(1, min(height, entries // (width * num_tokens)))
    attended = torch.empty_like(q)
    keys = k.transpose(1, 2).contiguous()  # a small copy, with which q . k is a quarter faster
    # One buffer for all chunks: allocating memory costs more than the addition whose result is stored in it.
    buffer = q.new_empty(num_heads, num_rows * width, num_tokens)
    for first, row in product(range(0, len(q), num_heads), range(0, height, num_rows)):
        heads = slice(first, first + num_heads)
        tokens = slice(row * width, (row + num_rows) * width)
        parts = rel_h[heads, row : row + num_rows, :, :, None], rel_w[heads, row : row + num_rows, :, None, :]
        scores = buffer[: len(parts[0]), : parts[0].shape[1] * width]
        torch.add(*parts, out=scores.view(len(scores), -1, width, height, width))
        # Not `baddbmm_`, which PyTorch's FLOP counter does not know.
        torch.baddbmm(scores, q[heads, tokens], keys[heads], alpha=shape[-1] ** -0.5, out=scores)
        torch.softmax(scores, dim=-1, out=scores)
        torch.bmm(scores, v[heads], out=attended[heads, tokens])
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
