"""The terms of the training loss: text cross-entropy, mask binary cross-entropy, mask dice; presence of a concept.

Definitions and defaults are those of LISA (arXiv 2308.00692), so that logged values are comparable. Text logits are
computed in chunks and recomputed in backward. The mask losses compute their gradients w.r.t. the low-resolution
logits in forward, so no tensor of the image size is saved for backward.
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
DEFAULT_WEIGHTS = {
    "cross_entropy": 1.0,
    "mask_bce": 2.0,
    "dice": 0.5,
    "map_bce": 1.0,
    "map_dice": 0.25,
    "presence": 1.0,
}
LOGITS_PER_CHUNK = 2**24  # 64 MB in float32, 524 tokens with a vocabulary of 32,000
PIXELS_PER_CHUNK = 2**22  # mask pixels, 16 MB in float32
DICE_SCALE = 1000.0  # the sums of the dice term are divided by it to keep them small
DICE_EPS = 1e-6  # corresponds to DICE_EPS * DICE_SCALE pixels


@dataclass(frozen=True)
class Losses:
    """Scalars, each already multiplied by its weight: all others add up to `total`."""

    total: Tensor
    cross_entropy: Tensor
    mask_bce: Tensor
    dice: Tensor
    map_bce: Tensor | None = None  # of the spatial prompt's maps, where the model has one
    map_dice: Tensor | None = None
    presence: Tensor | None = None  # of the concept head, where the model has one

    def values(self) -> dict[str, Tensor]:
        """Those that there are, by name."""
        return {name: value for name, value in vars(self).items() if value is not None}


def learned_positions(labels: Tensor) -> tuple[Tensor, Tensor]:
    """(N, T) labels -> rows and columns (n,) of the tokens with a label; a row's first token is never a target."""
    rows, columns = (labels[:, 1:] != IGNORE_LABEL).nonzero(as_tuple=True)
    return rows, columns + 1


def text_cross_entropy(
    states: Tensor, targets: Tensor, head: Callable[[Tensor], Tensor], num_chunks: int = 1
) -> Tensor:
    """Mean cross-entropy of the `targets` that are no IGNORE_LABEL; 0, with a gradient, if there are none.

    Logits are recomputed in backward, so at most one chunk of them is in memory at any time.

    Args:
        states: (n, hidden_dim), the hidden states that predict the targets.
        targets: (n,) token ids.
        head: (m, hidden_dim) -> (m, V) logits; called 2 * `num_chunks` times.
        num_chunks: number of chunks of nearly equal length that `states` is split into.
    """

    def summed(states: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(head(states).float(), targets, reduction="sum", ignore_index=IGNORE_LABEL)

    total = torch.zeros((), device=states.device)
    for chunk in zip(states.tensor_split(num_chunks), targets.tensor_split(num_chunks), strict=True):
        total = total + checkpoint(summed, *chunk, use_reentrant=False)
    return total / (targets != IGNORE_LABEL).sum().clamp(min=1)


def mask_losses(
    low_res: Sequence[Tensor], resizes: Sequence[MaskResize], gt_masks: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """Binary cross-entropy and dice loss of every mask of a batch, at the original image sizes.

    Binary cross-entropy is the mean over the pixels; dice is 1 - (2 sum(p t) + e) / (sum(p) + sum(t) + e) for
    probabilities p and targets t, where e = DICE_EPS * DICE_SCALE.

    Args:
        low_res: for each image (n_i, grid, grid) float32 logits.
        resizes: for each image the resize to its original size.
        gt_masks: for each image (n_i, height, width); values are not binarized, so soft masks are allowed.

    Returns:
        Two tensors (sum of n_i,).

    Raises:
        ValueError: predicted and ground truth masks of an image differ in number or size.
    """
    terms = [torch.zeros(2, 0, device=low_res[0].device)]
    for index, (masks, resize, target) in enumerate(zip(low_res, resizes, gt_masks, strict=True)):
        expected = (len(masks), *resize.size)
        if tuple(target.shape) != expected:
            raise ValueError(
                f"image {index} of the batch: predicted masks are {expected}, ground truth masks "
                f"{tuple(target.shape)}; every [SEG] needs one mask of the original image's size"
            )
        if len(masks):
            terms.append(MaskLosses.apply(masks, target, resize))
    bce, dice = torch.cat(terms, dim=1)
    return bce, dice


class MaskLosses(torch.autograd.Function):
    """(n, grid, grid) logits, (n, height, width) targets -> (2, n): binary cross-entropy and dice loss.

    Both gradients need the same probabilities as the losses, so they are computed in forward and reduced to the
    low-resolution grid. Only these small tensors are saved for backward.
    """

    @staticmethod
    def forward(ctx: Any, low_res: Tensor, targets: Tensor, resize: MaskResize) -> Tensor:
        height, width = resize.size
        chunk = max(1, PIXELS_PER_CHUNK // (height * width))
        losses, gradients = [], []
        for masks, target in zip(low_res.split(chunk), targets.split(chunk), strict=True):
            logits = resize.enlarge(masks)
            target = target.to(logits)
            loss, probabilities, fraction = _losses_of(logits, target)
            losses.append(loss)
            if ctx.needs_input_grad[0]:
                gradients.append(_gradients_of(probabilities, target, fraction, resize))
        if gradients:
            ctx.save_for_backward(torch.cat(gradients, dim=1))
        return torch.cat(losses, dim=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        [low_res_gradients] = ctx.saved_tensors  # (2, n, grid, grid)
        return (gradient[..., None, None] * low_res_gradients).sum(0), None, None


def _losses_of(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Both losses (2, m) of (m, height, width) logits, the probabilities, and dice's numerator and denominator.

    Overwrites `logits` with the probabilities.
    """
    bce = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean((1, 2))
    probabilities = logits.sigmoid_()
    both = (probabilities * targets).sum((1, 2)) / DICE_SCALE
    total = (probabilities.sum((1, 2)) + targets.sum((1, 2))) / DICE_SCALE
    numerator, denominator = 2 * both + DICE_EPS, total + DICE_EPS
    return torch.stack([bce, 1 - numerator / denominator]), probabilities, (numerator, denominator)


def _gradients_of(
    probabilities: Tensor, targets: Tensor, fraction: tuple[Tensor, Tensor], resize: MaskResize
) -> Tensor:
    """(2, m, grid, grid): gradients of both losses w.r.t. the low-resolution logits. Overwrites `probabilities`.

    For a pixel with probability p and target t, the gradient w.r.t. its logit at the original size is
    (p - t) / number of pixels for binary cross-entropy, and p (1 - p) (N / D - 2 t) / (DICE_SCALE D) for the dice
    loss 1 - N / D.
    """
    numerator, denominator = (part[:, None, None] for part in fraction)
    dice = (numerator / denominator - 2 * targets).div_(DICE_SCALE * denominator).mul_(probabilities)
    dice = resize.reduce(dice.addcmul_(dice, probabilities, value=-1))
    bce = resize.reduce(probabilities.sub_(targets).div_(targets[0].numel()))
    return torch.stack([bce, dice])


def presence_losses(present: Tensor, absent: Tensor) -> Tensor:
    """Binary cross-entropy (n + m,) of the presence logits of classes that are present (n,) and absent (m,)."""
    logits = torch.cat([present, absent])
    truth = torch.cat([torch.ones_like(present), torch.zeros_like(absent)])
    return F.binary_cross_entropy_with_logits(logits, truth, reduction="none")


def segmentation_losses(
    cross_entropy: Tensor,
    bce: Tensor,
    dice: Tensor,
    weights: Mapping[str, float] = DEFAULT_WEIGHTS,
    maps: tuple[Tensor, Tensor] | None = None,
    presence: Tensor | None = None,
) -> Losses:
    """Weighted losses of a batch; the mask terms are means over all masks of the batch, 0 if there are none.

    Args:
        cross_entropy: scalar, the mean over the tokens with a label.
        bce, dice: (number of masks,), as `mask_losses` returns them.
        maps: the same of the spatial prompt's maps, as `map_losses` returns them.
        presence: (number of classes looked for,), as `presence_losses` returns it.
    """
    of_masks = {"mask_bce": bce, "dice": dice}
    if maps is not None:
        of_masks |= dict(zip(("map_bce", "map_dice"), maps, strict=True))
    if presence is not None:
        of_masks["presence"] = presence
    terms = {"cross_entropy": weights["cross_entropy"] * cross_entropy}
    terms |= {name: weights[name] * each.sum() / max(len(each), 1) for name, each in of_masks.items()}
    return Losses(total=sum(terms.values()), **terms)
