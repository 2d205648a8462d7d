"""Mask logits from SAM's grid to the size of the image, and gradients the way back, as small matrix products.

SAM enlarges its masks to the padded square, cuts the padding and resizes to the original size. Each of these steps
is linear and works on rows and columns alone, so all of them together are R @ mask @ C.T, one matrix for the rows and
one for the columns: no array of the padded square, and nothing to keep for the way back.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# Columns of the image that are made at once. A column depends on few of the grid's, so the rest of its row of the
# matrix, which is zero, need not be multiplied.
BAND_WIDTH = 128


@dataclass(frozen=True, kw_only=True)
class MaskResize:
    """From a grid of mask logits to the image, for all masks of one image."""

    rows: Tensor  # (height, grid) float32
    columns: Tensor  # (width, grid) float32
    bands: tuple[tuple[slice, slice], ...]  # columns of the image, and those of the grid that they depend on

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
            grid_side: side of SAM's masks.
            padded_side: side of SAM's input.
            resized_size: (height, width) of the image in SAM's input, without the padding.
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
        """(n, height, width) float32 -> (n, grid, grid): gradients the way back through `enlarge`."""
        with torch.autocast(gradients.device.type, enabled=False):
            tall = gradients.new_zeros(len(gradients), len(self.rows), self.columns.shape[1])
            for outer, inner in self.bands:
                tall[..., inner] += gradients[..., outer] @ self.columns[outer, inner]
            return self.rows.T @ tall


def axis_weights(grid: int, padded: int, resized: int, original: int, device: torch.device) -> Tensor:
    """(original, grid) float32: what each value along the image's axis takes from each of the grid's."""
    weights = torch.eye(grid, device=device).unsqueeze(
        0
    )  # (1, grid, grid): one channel for each of the grid's
    weights = F.interpolate(weights, padded, mode="linear", align_corners=False)[..., :resized]
    return F.interpolate(weights, original, mode="linear", align_corners=False)[0].T.contiguous()


def column_bands(grid: int, padded: int, resized: int, original: int) -> tuple[tuple[slice, slice], ...]:
    """Slices of the image's columns, each with a slice of the grid's that holds all it depends on."""

    def source(column: float) -> float:
        return ((column + 0.5) * resized / original) * grid / padded - 0.5

    # Both interpolations look at the next value on both sides, of padded square and grid; one more is for rounding.
    reach = grid / padded + 2
    bands = []
    for start in range(0, original, BAND_WIDTH):
        end = min(start + BAND_WIDTH, original)
        first = max(0, math.floor(source(start) - reach))
        last = min(grid, math.ceil(source(end - 1) + reach) + 1)
        bands.append((slice(start, end), slice(first, last)))
    return tuple(bands)
