import pytest
import torch
import torch.nn.functional as F

from model.losses import dice_loss, mask_bce, segmentation_losses, text_cross_entropy

torch.manual_seed(0)
LOGITS = torch.randn(2, 5, 11)
LABELS = torch.tensor([[-100, -100, 3, 4, 2], [-100, 7, 1, -100, -100]])


def no_masks():
    return {"masks": [], "gt_masks": []}


def test_cross_entropy_is_the_mean_over_learned_tokens_of_the_whole_batch():
    expected = F.cross_entropy(LOGITS[:, :-1].reshape(-1, 11), LABELS[:, 1:].reshape(-1))
    torch.testing.assert_close(text_cross_entropy(LOGITS, LABELS), expected)


def test_cross_entropy_without_learned_tokens_is_zero_with_a_gradient():
    logits = LOGITS.clone().requires_grad_()
    loss = text_cross_entropy(logits, torch.full_like(LABELS, -100))
    loss.backward()
    assert loss == 0
    assert logits.grad.abs().sum() == 0


def test_mask_terms_are_means_over_masks_and_not_over_images():
    masks = [torch.randn(3, 4, 6), torch.randn(1, 8, 2)]
    targets = [torch.randint(0, 2, mask.shape, dtype=torch.uint8) for mask in masks]
    losses = segmentation_losses(LOGITS, LABELS, masks, targets)
    each = [
        F.binary_cross_entropy_with_logits(mask, target.float())
        for image, truth in zip(masks, targets, strict=True)
        for mask, target in zip(image, truth, strict=True)
    ]
    torch.testing.assert_close(losses.mask_bce, 2.0 * torch.stack(each).mean())
    torch.testing.assert_close(losses.total, losses.cross_entropy + losses.mask_bce + losses.dice)


def test_dice_of_hard_masks_is_one_minus_the_dice_coefficient():
    prediction = torch.tensor([[[1.0, 1, 0, 0]], [[1, 0, 0, 0]], [[0, 0, 0, 0]]])
    target = torch.tensor([[[1.0, 0, 0, 0]], [[0, 1, 0, 0]], [[0, 0, 0, 0]]])
    logits = (prediction - 0.5) * 200
    expected = torch.tensor([1 - 2 / 3, 1.0, 0.0])
    torch.testing.assert_close(dice_loss(logits, target), expected, atol=2e-3, rtol=0)


def test_soft_and_counted_masks_keep_their_value():
    logits, target = torch.zeros(1, 1, 2), torch.tensor([[[0.5, 2.0]]])
    by_hand = (torch.log(torch.tensor(2.0)) * 2) / 2  # log(1 + e^0) - target * 0, mean of two pixels
    torch.testing.assert_close(mask_bce(logits, target), by_hand.view(1))
    losses = segmentation_losses(LOGITS, LABELS, [logits + 1], [target])
    rounded = segmentation_losses(LOGITS, LABELS, [logits + 1], [target.clamp(max=1)])
    assert losses.mask_bce != rounded.mask_bce


def test_a_batch_without_masks_has_no_mask_loss():
    empty = torch.zeros(0, 4, 4)
    for kwargs in (no_masks(), {"masks": [empty], "gt_masks": [empty]}):
        losses = segmentation_losses(LOGITS, LABELS, **kwargs)
        assert losses.mask_bce == losses.dice == 0
        torch.testing.assert_close(losses.total, losses.cross_entropy)


def test_masks_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"\(2, 4, 4\).*\(1, 4, 4\)"):
        segmentation_losses(LOGITS, LABELS, [torch.zeros(2, 4, 4)], [torch.zeros(1, 4, 4)])
