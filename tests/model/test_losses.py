"""Losses against hand-made numbers and against plain formulas on whole arrays, and how large their arrays get."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from model import losses as losses_module
from model.decoders.geometry import MaskResize
from model.losses import learned_positions, mask_losses, segmentation_losses, text_cross_entropy
from tests.watching import Largest

CPU = torch.device("cpu")
SIZES = [((40, 64), (25, 40)), ((64, 31), (80, 39))]  # resized for SAM (64 pixels), original


def as_they_are(height: int, width: int) -> MaskResize:
    """Masks of the image's size already."""
    whole = ((slice(0, width), slice(0, width)),)
    return MaskResize(rows=torch.eye(height), columns=torch.eye(width), bands=whole)


def losses_of(logits, targets):
    bce, dice = mask_losses([logits], [as_they_are(*logits.shape[1:])], [targets])
    return bce, dice


def plain_losses(low_res, targets, resized, original):
    """LISA's formulas and segment_anything's resizing, one whole array after the other."""
    masks = F.interpolate(low_res.unsqueeze(1), (64, 64), mode="bilinear", align_corners=False)
    masks = masks[..., : resized[0], : resized[1]]
    masks = F.interpolate(masks, original, mode="bilinear", align_corners=False).squeeze(1)
    targets = targets.to(masks)
    bce = F.binary_cross_entropy_with_logits(masks, targets, reduction="none").flatten(1).mean(1)
    probabilities, targets = masks.sigmoid().flatten(1) / 1000, targets.flatten(1)
    both = 2 * (probabilities * targets).sum(1)
    return bce, 1 - (both + 1e-6) / (probabilities.sum(1) + targets.sum(1) / 1000 + 1e-6)


# ------------------------------------------------------------------------------------------------ text


def head_and_states(num_tokens, vocabulary=50, hidden=6):
    torch.manual_seed(num_tokens)
    states = torch.randn(num_tokens, hidden, requires_grad=True)
    return nn.Linear(hidden, vocabulary, bias=False), states, torch.randint(vocabulary, (num_tokens,))


@pytest.mark.parametrize("num_chunks", [1, 3, 8])
@pytest.mark.parametrize("num_tokens", [1, 7, 24])
def test_cross_entropy_in_pieces_equals_the_plain_one_with_its_gradients(num_tokens, num_chunks):
    head, states, targets = head_and_states(num_tokens)
    expected = F.cross_entropy(head(states), targets)
    loss = text_cross_entropy(states, targets, head, num_chunks)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    parts = (states, head.weight)
    for mine, plain in zip(
        torch.autograd.grad(loss, parts), torch.autograd.grad(expected, parts), strict=True
    ):
        torch.testing.assert_close(mine, plain, rtol=1e-6, atol=1e-6 * float(plain.abs().max()))


@pytest.mark.parametrize("num_chunks", [1, 8])
def test_cross_entropy_without_learned_tokens_is_zero_with_a_gradient(num_chunks):
    head, states, targets = head_and_states(0)
    loss = text_cross_entropy(states, targets, head, num_chunks)
    loss.backward()
    assert loss == 0
    assert head.weight.grad.abs().sum() == 0


def test_no_float32_array_of_all_tokens_and_the_whole_vocabulary_is_made():
    head, states, targets = head_and_states(64, vocabulary=1000)
    with Largest(torch.float32) as largest:
        text_cross_entropy(states, targets, head, num_chunks=16).backward()
    # Three such arrays (logits, log-probabilities, gradient) live at once, for four of the 64 tokens.
    assert largest.numel == max(4 * 1000, head.weight.numel())
    assert 3 * largest.numel < 64 * 1000


def test_cross_entropy_in_pieces_runs_under_autocast():
    head, states, targets = head_and_states(9)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = text_cross_entropy(states, targets, head, num_chunks=2)
        expected = F.cross_entropy(head(states).float(), targets)
    loss.backward()
    assert loss.dtype == states.grad.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)


def test_learned_positions_leave_out_the_first_token_which_nothing_predicts():
    labels = torch.tensor([[5, -100, 3, 4], [-100, 7, -100, -100]])
    rows, columns = learned_positions(labels)
    assert (rows.tolist(), columns.tolist()) == ([0, 0, 1], [2, 3, 1])


# ----------------------------------------------------------------------------------------------- masks


@pytest.mark.parametrize("pixels_at_once", [1, 3000, 10**6])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.float32])
def test_mask_losses_equal_plain_ones_with_their_gradients(dtype, pixels_at_once, monkeypatch):
    monkeypatch.setattr(losses_module, "PIXELS_PER_CHUNK", pixels_at_once)
    torch.manual_seed(0)
    low_res = [(5 * torch.randn(count, 16, 16)).requires_grad_() for count in (3, 1)]
    targets = [
        (torch.rand(len(masks), *original) if dtype.is_floating_point else torch.rand(len(masks), *original) > 0.7)
        .to(dtype)
        for masks, (_, original) in zip(low_res, SIZES, strict=True)
    ]  # fmt: skip
    resizes = [MaskResize.between(16, 64, resized, original, CPU) for resized, original in SIZES]
    plain = [plain_losses(*each, *sizes) for *each, sizes in zip(low_res, targets, SIZES, strict=True)]
    weights = torch.randn(2, 4)

    def gradients(bce, dice):
        return torch.autograd.grad((weights * torch.stack([bce, dice])).sum(), low_res)

    bce, dice = mask_losses(low_res, resizes, targets)
    expected = [torch.cat(terms) for terms in zip(*plain, strict=True)]
    torch.testing.assert_close([bce, dice], expected, rtol=1e-5, atol=1e-6)
    for mine, theirs in zip(gradients(bce, dice), gradients(*expected), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))


def test_the_derivatives_of_the_mask_losses_are_those_of_small_differences(monkeypatch):
    monkeypatch.setattr(
        losses_module, "DICE_SCALE", 1.0
    )  # so that the dice term bends at the size of this image
    torch.manual_seed(0)
    resize = MaskResize(
        rows=torch.rand(5, 3, dtype=torch.float64),
        columns=torch.rand(4, 3, dtype=torch.float64),
        bands=((slice(0, 4), slice(0, 3)),),
    )
    low_res = torch.randn(2, 3, 3, dtype=torch.float64, requires_grad=True)
    targets = torch.rand(2, 5, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda masks: losses_module.MaskLosses.apply(masks, targets, resize), (low_res,)
    )


def test_mask_losses_hold_one_piece_at_original_size(monkeypatch):
    monkeypatch.setattr(losses_module, "PIXELS_PER_CHUNK", 2 * 100 * 80)
    low_res = torch.randn(10, 16, 16, requires_grad=True)
    resize = MaskResize.between(16, 64, (64, 51), (100, 80), CPU)
    with Largest(torch.float32) as largest:
        bce, dice = mask_losses([low_res], [resize], [torch.ones(10, 100, 80, dtype=torch.uint8)])
        (bce + dice).sum().backward()
    assert largest.numel == 2 * 100 * 80


def test_mask_terms_are_means_over_masks_and_not_over_images():
    masks = [torch.randn(3, 4, 6), torch.randn(1, 8, 2)]
    targets = [torch.randint(0, 2, mask.shape, dtype=torch.uint8) for mask in masks]
    resizes = [as_they_are(*mask.shape[1:]) for mask in masks]
    losses = segmentation_losses(torch.tensor(0.25), *mask_losses(masks, resizes, targets))
    each = [
        F.binary_cross_entropy_with_logits(mask, target.float())
        for image, truth in zip(masks, targets, strict=True)
        for mask, target in zip(image, truth, strict=True)
    ]
    torch.testing.assert_close(losses.mask_bce, 2.0 * torch.stack(each).mean())
    torch.testing.assert_close(losses.total, 0.25 + losses.mask_bce + losses.dice)


def test_dice_of_hard_masks_is_one_minus_the_dice_coefficient():
    prediction = torch.tensor([[[1.0, 1, 0, 0]], [[1, 0, 0, 0]], [[0, 0, 0, 0]]])
    target = torch.tensor([[[1.0, 0, 0, 0]], [[0, 1, 0, 0]], [[0, 0, 0, 0]]])
    _, dice = losses_of((prediction - 0.5) * 200, target)
    torch.testing.assert_close(dice, torch.tensor([1 - 2 / 3, 1.0, 0.0]), atol=2e-3, rtol=0)


def test_soft_and_counted_masks_keep_their_value():
    logits, target = torch.zeros(1, 1, 2), torch.tensor([[[0.5, 2.0]]])
    by_hand = (torch.log(torch.tensor(2.0)) * 2) / 2  # log(1 + e^0) - target * 0, mean of two pixels
    torch.testing.assert_close(losses_of(logits, target)[0], by_hand.view(1))
    assert losses_of(logits + 1, target)[0] != losses_of(logits + 1, target.clamp(max=1))[0]


def test_a_batch_without_masks_has_no_mask_loss():
    empty = torch.zeros(0, 4, 4)
    losses = segmentation_losses(torch.tensor(0.25), *losses_of(empty, empty))
    assert losses.mask_bce == losses.dice == 0
    assert losses.total == 0.25


def test_masks_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"\(2, 4, 4\).*\(1, 4, 4\)"):
        losses_of(torch.zeros(2, 4, 4), torch.zeros(1, 4, 4))
