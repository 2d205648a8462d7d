"""Pixels as the square encoders of SAM 2 and SAM 3 read them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from model.errors import UserError


def check_statistics(name: str, values: Any) -> tuple[float, ...]:
    """Mean or standard deviation of the three colours, for pixels in 0..1; UserError for anything else."""
    if (
        not isinstance(values, list | tuple)
        or len(values) != 3
        or not all(isinstance(each, int | float) for each in values)
    ):
        shown = list(values) if isinstance(values, list | tuple) else values
        raise UserError(f"{name} of sam_config is {shown!r}; it is three numbers")
    return tuple(values)


def normalized(images: Tensor, side: int, mean: Sequence[float], std: Sequence[float], title: str) -> Tensor:
    """(B, 3, side, side) uint8 RGB -> float32, by statistics of pixels in 0..1; `title`: whose input it is.

    Raises:
        ValueError: the images have another size.
    """
    if tuple(images.shape[-2:]) != (side, side):
        raise ValueError(f"images of {tuple(images.shape[-2:])} pixels; {title} takes {side} x {side}")
    shift, scale = (
        255 * torch.tensor(values).to(images.device, non_blocking=True).view(3, 1, 1)
        for values in (mean, std)
    )
    return (images.float() - shift) / scale
