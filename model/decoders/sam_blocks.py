"""Blocks of SAM's image encoder on a CPU without copies: windows are filled directly, residuals are added in place.

segment_anything pads and copies the tokens of a block into windows, multiplies the padding as well, copies queries,
keys and values once more, and writes every sum into fresh memory, each page of which the system clears first. All of
this takes a quarter of the encoder's time on one core. The numbers are the same within float32 rounding.
"""

from __future__ import annotations

import torch
from segment_anything.modeling import ImageEncoderViT
from segment_anything.modeling.image_encoder import Block
from torch import Tensor, nn

from model.decoders.sam_attention import TOKENS_PER_CALL, FusedAttention


class FusedBlock(Block):
    """Replaces a `Block` of segment_anything and keeps its weights under the same names."""

    def __init__(self, eager: Block) -> None:
        nn.Module.__init__(self)  # and not the block's own, which would make new weights
        self.norm1, self.norm2, self.mlp = eager.norm1, eager.norm2, eager.mlp
        self.attn = FusedAttention(eager.attn)
        self.window_size = eager.window_size

    def forward(self, x: Tensor) -> Tensor:
        """(n, height, width, dim) -> the same shape; on a CPU without gradients, `x` may be overwritten."""
        if x.device.type != "cpu" or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return super().forward(x)
        x = x.contiguous()
        x += self.attn(self.norm1(x), window_size=self.window_size)
        for part in x.flatten(0, 2).split(TOKENS_PER_CALL):
            part += self.mlp(self.norm2(part))
        return x


def use_fused_blocks(encoder: ImageEncoderViT) -> None:
    """Replaces every block and its attention, windowed or global; names and values of the weights are unchanged."""
    for index, block in enumerate(encoder.blocks):
        encoder.blocks[index] = FusedBlock(block)
