"""Resizing low-resolution mask logits to the image size, and the backward of that, as two small matrix products.

SAM upsamples its masks to the padded square, crops the padding and resizes to the original size. Each step is linear
and separable in rows and columns, so together they are R @ mask @ C.T with one matrix for the rows and one for the
columns. No tensor of the padded square's size exists, and nothing is saved for backward.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# Image columns computed in one matrix product. A column depends on few grid columns, so most of C is zero; working on
# bands of columns skips most of these zeros.
BAND_WIDTH = 128


@dataclass(frozen=True, kw_only=True)
class MaskResize:
    """The linear map from low-resolution mask logits to the image size, for all masks of one image."""

    rows: Tensor  # (height, grid) float32
    columns: Tensor  # (width, grid) float32
    bands: tuple[tuple[slice, slice], ...]  # image columns, and the grid columns that they depend on

    @classmethod
    def between(
        cls,
        grid_side: int,
        padded_side: int,
        resized_size: tuple[int, int],
        original_size: tuple[int, int],
        device: torch.device,
    ) -> MaskResize:
        """The resize of `Sam.postprocess_masks`.

        Args:
            grid_side: side of SAM's low-resolution masks.
            padded_side: side of SAM's input.
            resized_size: (height, width) of the image in SAM's input, without padding.
            original_size: (height, width) of the result.
        """
        rows, columns = (
            axis_weights(grid_side, padded_side, resized, original, device)
            for resized, original in zip(resized_size, original_size, strict=True)
        )
        bands = column_bands(grid_side, padded_side, resized_size[1], original_size[1])
        return cls(rows=rows, columns=columns, bands=bands)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the result."""
        return len(self.rows), len(self.columns)

    def enlarge(self, masks: Tensor) -> Tensor:
        """(n, grid, grid) float32 -> (n, height, width)."""
        with torch.autocast(masks.device.type, enabled=False):
            tall = self.rows @ masks
            result = masks.new_empty(len(masks), *self.size)
            for outer, inner in self.bands:
                result[..., outer] = tall[..., inner] @ self.columns[outer, inner].T
        return result

    def reduce(self, gradients: Tensor) -> Tensor:
        """(n, height, width) float32 -> (n, grid, grid): the backward of `enlarge` (its transpose)."""
        with torch.autocast(gradients.device.type, enabled=False):
            tall = gradients.new_zeros(len(gradients), len(self.rows), self.columns.shape[1])
            for outer, inner in self.bands:
                tall[..., inner] += gradients[..., outer] @ self.columns[outer, inner]
            return self.rows.T @ tall


def axis_weights(grid: int, padded: int, resized: int, original: int, device: torch.device) -> Tensor:
    """(original, grid) float32: the interpolation weights from the grid to the image, along one axis."""
    weights = torch.eye(grid, device=device).unsqueeze(
        0
    )  # (1, grid, grid): one channel for each of the grid's
    weights = F.interpolate(weights, padded, mode="linear", align_corners=False)[..., :resized]
    return F.interpolate(weights, original, mode="linear", align_corners=False)[0].T.contiguous()


def column_bands(grid: int, padded: int, resized: int, original: int) -> tuple[tuple[slice, slice], ...]:
    """Slices of image columns, each with the slice of grid columns that it depends on."""

    def source(column: float) -> float:
        return ((column + 0.5) * resized / original) * grid / padded - 0.5

    # Each of the two interpolations reads one neighbour on both sides; one extra column allows for rounding.
    reach = grid / padded + 2
    bands = []
    for start in range(0, original, BAND_WIDTH):
        end = min(start + BAND_WIDTH, original)
        first = max(0, math.floor(source(start) - reach))
        last = min(grid, math.ceil(source(end - 1) + reach) + 1)
        bands.append((slice(start, end), slice(first, last)))
    return tuple(bands)
