"""Blocks of SAM's image encoder on a CPU: no padding is multiplied, and nothing large is allocated anew."""

from __future__ import annotations

import pytest
import torch
from segment_anything.modeling.image_encoder import Block

from model.decoders import sam_attention, sam_blocks
from model.decoders.sam_blocks import FusedBlock
from tests.watching import Largest

DIM, HEADS = 24, 3


def block(window, side):
    torch.manual_seed(0)
    made = Block(DIM, HEADS, use_rel_pos=True, window_size=window, input_size=side).double().eval()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made


@pytest.mark.parametrize("tokens", [1, 20, 1024])
@pytest.mark.parametrize("window", [0, 3, 4, 9])
@pytest.mark.parametrize("side", [(5, 7), (8, 8), (2, 3)])
def test_a_block_equals_segment_anything_for_any_window_and_number_of_tokens_a_call(
    side, window, tokens, monkeypatch
):
    monkeypatch.setattr(sam_attention, "TOKENS_PER_CALL", tokens)
    monkeypatch.setattr(sam_blocks, "TOKENS_PER_CALL", tokens)
    eager = block(window, side)
    x = torch.randn(2, *side, DIM, dtype=torch.float64)
    with torch.no_grad():
        expected = eager(x.clone())
        # As it comes from the patch embedding: channels first in memory.
        for given in (x.clone(), x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)):
            torch.testing.assert_close(FusedBlock(eager)(given), expected, rtol=1e-9, atol=1e-9)
            eager = block(window, side)  # whose attention is its own again


def test_with_gradients_the_input_is_left_as_it_was():
    eager = FusedBlock(block(3, (5, 7)))
    x = torch.randn(1, 5, 7, DIM, dtype=torch.float64)
    before = x.clone()
    eager(x).sum().backward()
    assert torch.equal(x, before)
    with torch.no_grad():
        assert eager(x).data_ptr() == x.data_ptr()  # in place


def test_the_hidden_layer_and_the_windows_are_made_piece_by_piece(monkeypatch):
    side = (16, 16)
    eager, ours = block(4, side), FusedBlock(block(4, side))
    x = torch.randn(1, *side, DIM, dtype=torch.float64)
    monkeypatch.setattr(sam_attention, "TOKENS_PER_CALL", 32)
    monkeypatch.setattr(sam_blocks, "TOKENS_PER_CALL", 32)
    monkeypatch.setattr(sam_attention, "ENTRIES_PER_THREAD", 16**2 // torch.get_num_threads())
    sizes = []
    with torch.no_grad():
        for module in (eager, ours):
            with Largest() as largest:
                module(x.clone())
            sizes.append(largest.numel)
    assert sizes[0] >= 256 * 4 * DIM  # the hidden layer
    assert sizes[1] <= 256 * DIM  # the image
