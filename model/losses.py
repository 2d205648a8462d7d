"""The three terms of the training loss: text cross-entropy, mask binary cross-entropy, mask dice.

Definitions and defaults are those of LISA (arXiv 2308.00692), so that logged values can be compared. What is as large
as the vocabulary or an image is computed in chunks and recomputed in backward.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from model.decoders.geometry import MaskResize

IGNORE_LABEL = -100
DEFAULT_WEIGHTS = {"cross_entropy": 1.0, "mask_bce": 2.0, "dice": 0.5}
LOGITS_PER_CHUNK = 2**24  # text logits at once: 64 MB in float32, 524 tokens of a vocabulary of 32,000
PIXELS_PER_CHUNK = 2**22  # of masks at once: 16 MB in float32
DICE_SCALE = 1000.0  # divides the sums of the dice term so that they stay small
DICE_EPS = 1e-6  # acts as DICE_EPS * DICE_SCALE pixels


@dataclass(frozen=True)
class Losses:
    """Scalars, each already multiplied by its weight: the last three add up to `total`."""

    total: Tensor
    cross_entropy: Tensor
    mask_bce: Tensor
    dice: Tensor


def learned_positions(labels: Tensor) -> tuple[Tensor, Tensor]:
    """(N, T) labels -> rows and columns (n,) of the learned tokens; nothing predicts the first token of a row."""
    rows, columns = (labels[:, 1:] != IGNORE_LABEL).nonzero(as_tuple=True)
    return rows, columns + 1


def text_cross_entropy(
    states: Tensor, targets: Tensor, head: Callable[[Tensor], Tensor], num_chunks: int = 1
) -> Tensor:
    """Mean cross-entropy of `targets`; 0, with a gradient, when there are none.

    The logits of a chunk are recomputed in backward, so those of one chunk are all that ever exists.

    Args:
        states: (n, hidden_dim), the states that predict the targets.
        targets: (n,) token ids.
        head: (m, hidden_dim) -> (m, V) logits; called 2 * `num_chunks` times.
        num_chunks: pieces of nearly equal length that `states` are cut into.
    """

    def summed(states: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(head(states).float(), targets, reduction="sum")

    total = torch.zeros((), device=states.device)
    for chunk in zip(states.tensor_split(num_chunks), targets.tensor_split(num_chunks), strict=True):
        total = total + checkpoint(summed, *chunk, use_reentrant=False)
    return total / max(len(targets), 1)


def mask_losses(
    low_res: Sequence[Tensor], resizes: Sequence[MaskResize], gt_masks: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """Binary cross-entropy and dice loss of every mask of a batch, at the images' original size.

    Binary cross-entropy is the mean over the pixels; dice is 1 - (2 sum(p t) + e) / (sum(p) + sum(t) + e) for
    probabilities p and targets t, where e = DICE_EPS * DICE_SCALE.

    Args:
        low_res: for each image (n_i, grid, grid) float32 logits.
        resizes: for each image the way to its original size.
        gt_masks: for each image (n_i, height, width); values are kept as they are, so a soft mask stays soft.

    Returns:
        Two tensors (sum of n_i,).

    Raises:
        ValueError: the masks of an image differ in number or size from those given.
    """
    terms = [torch.zeros(2, 0, device=low_res[0].device)]
    for index, (masks, resize, target) in enumerate(zip(low_res, resizes, gt_masks, strict=True)):
        expected = (len(masks), *resize.size)
        if tuple(target.shape) != expected:
            raise ValueError(
                f"image {index} of the batch: predicted masks are {expected}, the given ones "
                f"{tuple(target.shape)}; every [SEG] needs one mask of the original image's size"
            )
        if len(masks):
            terms.append(MaskLosses.apply(masks, target, resize))
    bce, dice = torch.cat(terms, dim=1)
    return bce, dice


class MaskLosses(torch.autograd.Function):
    """(n, grid, grid) logits, (n, height, width) targets -> (2, n): binary cross-entropy and dice loss.

    Both derivatives need what the losses need, so they are taken on the way there, from one array of probabilities,
    and brought to the size of the grid. Only these small arrays wait for the way back.
    """

    @staticmethod
    def forward(ctx: Any, low_res: Tensor, targets: Tensor, resize: MaskResize) -> Tensor:
        height, width = resize.size
        chunk = max(1, PIXELS_PER_CHUNK // (height * width))
        losses, slopes = [], []
        for masks, target in zip(low_res.split(chunk), targets.split(chunk), strict=True):
            logits = resize.enlarge(masks)
            target = target.to(logits)
            loss, probabilities, fraction = _losses_of(logits, target)
            losses.append(loss)
            if ctx.needs_input_grad[0]:
                slopes.append(_slopes_of(probabilities, target, fraction, resize))
        if slopes:
            ctx.save_for_backward(torch.cat(slopes, dim=1))
        return torch.cat(losses, dim=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        [slopes] = ctx.saved_tensors  # (2, n, grid, grid)
        return (gradient[..., None, None] * slopes).sum(0), None, None


def _losses_of(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Both losses (2, m) of (m, height, width) logits, their probabilities, numerator and denominator of the dice.

    The probabilities take the place of the logits, which are gone.
    """
    bce = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean((1, 2))
    probabilities = logits.sigmoid_()
    both = (probabilities * targets).sum((1, 2)) / DICE_SCALE
    total = (probabilities.sum((1, 2)) + targets.sum((1, 2))) / DICE_SCALE
    numerator, denominator = 2 * both + DICE_EPS, total + DICE_EPS
    return torch.stack([bce, 1 - numerator / denominator]), probabilities, (numerator, denominator)


def _slopes_of(
    probabilities: Tensor, targets: Tensor, fraction: tuple[Tensor, Tensor], resize: MaskResize
) -> Tensor:
    """(2, m, grid, grid): derivatives of both losses after the logits on the grid. Overwrites `probabilities`.

    After a logit at the original size, with p its probability and t its target: (p - t) / number of pixels for binary
    cross-entropy, and for the dice 1 - N / D: p (1 - p) (N / D - 2 t) / (DICE_SCALE D).
    """
    numerator, denominator = (part[:, None, None] for part in fraction)
    dice = (numerator / denominator - 2 * targets).div_(DICE_SCALE * denominator).mul_(probabilities)
    dice = resize.reduce(dice.addcmul_(dice, probabilities, value=-1))
    bce = resize.reduce(probabilities.sub_(targets).div_(targets[0].numel()))
    return torch.stack([bce, dice])


def segmentation_losses(
    cross_entropy: Tensor, bce: Tensor, dice: Tensor, weights: Mapping[str, float] = DEFAULT_WEIGHTS
) -> Losses:
    """Weighted losses of a batch; the mask terms are means over all masks of the batch, 0 when there is none.

    Args:
        cross_entropy: scalar, the mean over the learned tokens.
        bce, dice: (number of masks,), as `mask_losses` returns them.
    """
    terms = {
        "cross_entropy": weights["cross_entropy"] * cross_entropy,
        "mask_bce": weights["mask_bce"] * bce.sum() / max(len(bce), 1),
        "dice": weights["dice"] * dice.sum() / max(len(dice), 1),
    }
    return Losses(total=sum(terms.values()), **terms)
