"""The three terms of the training loss: text cross-entropy, mask binary cross-entropy, mask dice.

Definitions and defaults are those of LISA (arXiv 2308.00692), so that logged values can be compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE_LABEL = -100
DEFAULT_WEIGHTS = {"cross_entropy": 1.0, "mask_bce": 2.0, "dice": 0.5}


@dataclass(frozen=True)
class Losses:
    """Scalars, each already multiplied by its weight: the last three add up to `total`."""

    total: Tensor
    cross_entropy: Tensor
    mask_bce: Tensor
    dice: Tensor


def text_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of the next token over the learned ones; 0 when no token is learned.

    Args:
        logits: (N, T, V); position t predicts the token at t + 1.
        labels: (N, T), -100 where nothing is learned.
    """
    predictions = logits[:, :-1].flatten(0, 1).float()
    targets = labels[:, 1:].flatten()
    total = F.cross_entropy(predictions, targets, ignore_index=IGNORE_LABEL, reduction="sum")
    return total / (targets != IGNORE_LABEL).sum().clamp(min=1)


def mask_bce(logits: Tensor, targets: Tensor) -> Tensor:
    """(n, H, W) float32 logits and numeric targets -> (n,): binary cross-entropy, mean over the pixels."""
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").flatten(1).mean(1)


def dice_loss(logits: Tensor, targets: Tensor, scale: float = 1000.0, eps: float = 1e-6) -> Tensor:
    """(n, H, W) float32 logits and numeric targets -> (n,): 1 - dice of probabilities.

    `scale` divides the sums so that they stay small; `eps` then acts as eps * scale pixels.
    """
    probabilities = logits.sigmoid().flatten(1)
    targets = targets.flatten(1)
    intersection = 2 * (probabilities / scale * targets).sum(-1)
    total = (probabilities / scale).sum(-1) + (targets / scale).sum(-1)
    return 1 - (intersection + eps) / (total + eps)


def segmentation_losses(
    logits: Tensor,
    labels: Tensor,
    masks: Sequence[Tensor],
    gt_masks: Sequence[Tensor],
    weights: Mapping[str, float] = DEFAULT_WEIGHTS,
) -> Losses:
    """Weighted losses of a batch; the mask terms are means over all masks of the batch, 0 when there is none.

    Args:
        logits: (N, T, V) text logits.
        labels: (N, T), -100 where nothing is learned.
        masks: for each image (n_i, H_i, W_i) float32 logits at the original size.
        gt_masks: for each image (n_i, H_i, W_i); values are kept as they are, so a soft mask stays soft.

    Raises:
        ValueError: predicted and given masks of an image differ in shape.
    """
    cross_entropy = text_cross_entropy(logits, labels)
    bce_terms, dice_terms = [], []
    for index, (predicted, target) in enumerate(zip(masks, gt_masks, strict=True)):
        if predicted.shape != target.shape:
            raise ValueError(
                f"image {index} of the batch: predicted masks are {tuple(predicted.shape)}, the given ones "
                f"{tuple(target.shape)}; every [SEG] needs one mask of the original image's size"
            )
        if len(predicted):
            bce_terms.append(mask_bce(predicted, target.to(predicted)))
            dice_terms.append(dice_loss(predicted, target.to(predicted)))
    nothing = cross_entropy.new_zeros(())
    bce = torch.cat(bce_terms).mean() if bce_terms else nothing
    dice = torch.cat(dice_terms).mean() if dice_terms else nothing
    terms = {
        "cross_entropy": weights["cross_entropy"] * cross_entropy,
        "mask_bce": weights["mask_bce"] * bce,
        "dice": weights["dice"] * dice,
    }
    return Losses(total=sum(terms.values(), nothing), **terms)
