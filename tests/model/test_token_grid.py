"""Where image tokens lie: against grid_sample, area interpolation and numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model.token_grid import TokenGrid, average_over_cells, interpolation, overlaps, place_in_prompt

CPU = torch.device("cpu")
# The whole image, a centre crop as CLIP's, a square that reaches beyond the image.
REGIONS = [(0, 0, 48, 64), (0, 8, 48, 56), (-8, 0, 56, 64)]


def sampled(maps: Tensor, region, inside, original, square: int, side: int) -> Tensor:
    """The same with `grid_sample`: each prompt pixel looks up the map at its place in the original image."""
    centres = (torch.arange(side) + 0.5) / side * square
    y, x = centres / inside[0] * original[0], centres / inside[1] * original[1]
    y = (y - region[0]) / (region[2] - region[0]) * 2 - 1
    x = (x - region[1]) / (region[3] - region[1]) * 2 - 1
    at = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], -1)[None].expand(len(maps), -1, -1, -1)
    found = F.grid_sample(maps[:, None], at, padding_mode="border", align_corners=False)[:, 0]
    return found * ((y.abs() <= 1)[:, None] & (x.abs() <= 1))


@pytest.mark.parametrize("region", REGIONS)
@pytest.mark.parametrize("inside", [(96, 128), (128, 128)], ids=["padded", "squashed"])
def test_a_map_is_placed_where_grid_sample_finds_it(region, inside):
    maps = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(0))
    place = place_in_prompt(TokenGrid(size=(4, 6), region=region), 32, 128, inside, (48, 64), CPU)
    expected = sampled(maps, region, inside, (48, 64), 128, 32)
    torch.testing.assert_close(place(maps), expected, rtol=0, atol=1e-5)
    assert (expected == 0).any() == (inside[0] < 128 or region[1] > 0)


def test_a_painted_cell_is_found_at_its_place_in_the_prompt():
    # A crop of the middle: 4 x 4 tokens over columns 8 to 56 of an image of 48 x 64, so 12 pixels a token.
    grid = TokenGrid(size=(4, 4), region=(0, 8, 48, 56))
    maps = torch.zeros(1, 4, 4)
    maps[0, 3, 0] = 1  # rows 36 to 48, columns 8 to 20 of the image
    # SAM's square of 64 with a prompt of 64: the image lies in its first 48 rows.
    prompt = place_in_prompt(grid, 64, 64, (48, 64), (48, 64), CPU)(maps)[0]
    row, column = np.unravel_index(int(prompt.argmax()), prompt.shape)
    assert 36 <= row < 48
    assert 8 <= column < 20
    assert prompt[48:].abs().max() == 0  # padding
    assert prompt[:, :8].abs().max() == 0  # what was cropped away


@pytest.mark.parametrize("size", [(3, 4), (6, 8), (48, 64)])
def test_cells_average_a_mask_as_area_interpolation_does(size):
    mask = (torch.rand(2, 48, 64, generator=torch.Generator().manual_seed(0)) > 0.5).to(torch.uint8)
    average = average_over_cells(TokenGrid(size=size, region=(0, 0, 48, 64)), (48, 64), CPU)
    expected = F.adaptive_avg_pool2d(mask.float(), size)
    torch.testing.assert_close(average(mask), expected, rtol=0, atol=1e-6)


def test_a_cell_that_reaches_beyond_the_image_counts_what_is_outside_as_empty():
    # Two cells of 3 pixels over 4 pixels, from -1 to 5: each covers two pixels of the image.
    assert overlaps(4, -1, 5, 2).sum(1).tolist() == pytest.approx([2 / 3, 2 / 3])
    # Cells of 1.5 pixels: the second pixel is half in each.
    assert overlaps(3, 0, 3, 2) == pytest.approx(np.array([[1, 0.5, 0], [0, 0.5, 1]]) / 1.5)


def test_interpolation_continues_to_the_border_and_is_zero_beyond_it():
    weights = interpolation(np.array([-0.1, 0.0, 1.0, 2.0, 3.9, 4.1]), 0.0, 4.0, 2)
    assert weights.tolist() == [[0, 0], [1, 0], [1, 0], [0.5, 0.5], [0, 1], [0, 0]]


def test_the_tokens_of_the_grid_are_picked_among_those_of_the_image():
    grid = TokenGrid(size=(1, 2), region=(0, 0, 1, 1), tokens=(4, 3))
    assert grid.pick([10, 11, 12, 20, 21]) == [21, 20]
    assert TokenGrid(size=(1, 2), region=(0, 0, 1, 1)).pick([7, 8]) == [7, 8]
    with pytest.raises(ValueError, match="3 image tokens do not fill a grid of 1 x 2"):
        TokenGrid(size=(1, 2), region=(0, 0, 1, 1)).pick([7, 8, 9])
    with pytest.raises(ValueError, match="has 1 places"):
        TokenGrid(size=(1, 2), region=(0, 0, 1, 1), tokens=(0,))
