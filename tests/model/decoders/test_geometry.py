"""Resizing by matrices against segment_anything's three steps."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from model.decoders.geometry import MaskResize

CPU = torch.device("cpu")
# grid, padded square, resized, original: larger and smaller than the square, a thin one, a single column, no resize,
# and a grid as fine as the square or finer
CASES = [
    (64, 256, (192, 256), (480, 640)),
    (64, 256, (256, 100), (90, 35)),
    (64, 256, (3, 256), (5, 500)),
    (64, 256, (256, 1), (300, 1)),
    (64, 256, (256, 171), (256, 171)),
    (64, 64, (64, 40), (130, 81)),
    (64, 16, (16, 12), (200, 150)),
]


def step_by_step(masks, padded, resized, original):
    masks = F.interpolate(masks.unsqueeze(1), (padded, padded), mode="bilinear", align_corners=False)
    masks = masks[..., : resized[0], : resized[1]]
    return F.interpolate(masks, original, mode="bilinear", align_corners=False).squeeze(1)


@pytest.mark.parametrize(("grid", "padded", "resized", "original"), CASES)
def test_matrices_give_what_the_three_steps_give_both_ways(grid, padded, resized, original):
    torch.manual_seed(0)
    masks = (10 * torch.randn(2, grid, grid)).requires_grad_()
    gradient = torch.randn(2, *original)
    expected = step_by_step(masks, padded, resized, original)
    resize = MaskResize.between(grid, padded, resized, original, CPU)
    assert resize.size == original
    mine = resize.enlarge(masks)
    torch.testing.assert_close(mine, expected, rtol=0, atol=1e-4)
    [back] = torch.autograd.grad(expected, masks, gradient)
    scale = float(back.abs().max())
    torch.testing.assert_close(resize.reduce(gradient) / scale, back / scale, rtol=0, atol=1e-5)
    [by_autograd] = torch.autograd.grad(mine, masks, gradient)
    torch.testing.assert_close(by_autograd / scale, back / scale, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("grid", "padded", "resized", "original"), CASES)
def test_columns_depend_on_nothing_outside_their_band(grid, padded, resized, original):
    resize = MaskResize.between(grid, padded, resized, original, CPU)
    outside = resize.columns.clone()
    for outer, inner in resize.bands:
        outside[outer, inner] = 0
    assert not outside.any()
    assert sorted(x for outer, _ in resize.bands for x in range(outer.start, outer.stop)) == list(
        range(original[1])
    )


def test_autocast_does_not_round_the_masks():
    masks = torch.randn(1, 64, 64)
    resize = MaskResize.between(64, 256, (192, 256), (480, 640), CPU)
    expected = resize.enlarge(masks)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(resize.enlarge(masks), expected)
        assert resize.reduce(expected).dtype == torch.float32
