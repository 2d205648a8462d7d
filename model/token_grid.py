"""Where the image tokens of the language model lie in the image, and maps on their grid.

A map has one value for each token of the grid that covers the image. Placing it on the grid of a mask prompt, and
averaging a mask over the cells of the tokens, are linear and separable in rows and columns: each is a product with
one matrix for the rows and one for the columns, differentiable and deterministic on every device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from model.text.placeholder import Cells

Size = tuple[int, int]  # (height, width) in pixels
Region = tuple[float, float, float, float]  # top, left, bottom, right in pixels of the original image


@dataclass(frozen=True, kw_only=True)
class TokenGrid:
    """The image tokens that cover the image once, row by row.

    A vision tower may give further tokens: parts of the image at a higher resolution, separators of rows.
    """

    size: Cells  # rows and columns of tokens
    region: Region  # what the grid covers; it may lie inside the image (a crop) or reach beyond it (padding)
    tokens: tuple[int, ...] | None = (
        None  # places of the grid's tokens among those of the image; None: all of them
    )

    def __post_init__(self) -> None:
        rows, columns = self.size
        if self.tokens is not None and len(self.tokens) != rows * columns:
            raise ValueError(f"a grid of {rows} x {columns} tokens has {len(self.tokens)} places")

    def pick(self, places: Sequence[int]) -> list[int]:
        """Of the places of the image's tokens in a row, those of the grid's."""
        chosen = range(len(places)) if self.tokens is None else self.tokens
        picked = [places[index] for index in chosen]
        if len(picked) != self.size[0] * self.size[1]:
            raise ValueError(
                f"{len(picked)} image tokens do not fill a grid of {self.size[0]} x {self.size[1]}"
            )
        return picked


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Linear map from the token grid of one image to another grid: rows @ map @ columns.T."""

    rows: Tensor  # (height, grid rows) float32
    columns: Tensor  # (width, grid columns) float32

    def __call__(self, maps: Tensor) -> Tensor:
        """(n, grid rows, grid columns) -> (n, height, width) float32."""
        with torch.autocast(maps.device.type, enabled=False):
            return self.rows @ maps.float() @ self.columns.T


def place_in_prompt(
    grid: TokenGrid, prompt_side: int, square: int, inside: Size, original: Size, device: torch.device
) -> Placement:
    """Places a map where its tokens lie in the mask prompt; bilinear, 0 where the grid does not reach.

    Args:
        grid: of the language model's tokens.
        prompt_side: side of the mask prompt.
        square: side of the square that the prompt covers, such as the mask decoder's input.
        inside: (height, width) of the image in that square, at its upper left.
        original: (height, width) of the image.
    """
    rows, columns = (
        interpolation(
            (np.arange(prompt_side) + 0.5) / prompt_side * square / inside[axis] * original[axis],
            grid.region[axis],
            grid.region[axis + 2],
            grid.size[axis],
        )
        for axis in (0, 1)
    )
    return Placement(rows=_on(rows, device), columns=_on(columns, device))


def place_in_image(grid: TokenGrid, original: Size, device: torch.device) -> Placement:
    """Places a map at the size of the image, (height, width); bilinear, 0 where the grid does not reach."""
    rows, columns = (
        interpolation(
            np.arange(original[axis]) + 0.5, grid.region[axis], grid.region[axis + 2], grid.size[axis]
        )
        for axis in (0, 1)
    )
    return Placement(rows=_on(rows, device), columns=_on(columns, device))


def average_over_cells(grid: TokenGrid, original: Size, device: torch.device) -> Placement:
    """Averages a mask of the original image over the cell of each token; what lies outside the image counts as 0.

    The result is applied to masks: `Placement(masks)` is (n, grid rows, grid columns).
    """
    rows, columns = (
        overlaps(original[axis], grid.region[axis], grid.region[axis + 2], grid.size[axis]) for axis in (0, 1)
    )
    return Placement(rows=_on(rows, device), columns=_on(columns, device))


def interpolation(places: np.ndarray, start: float, end: float, num_cells: int) -> np.ndarray:
    """(len(places), num_cells) weights of linear interpolation between the centres of cells from `start` to `end`.

    The values of the outermost cells continue to the border; beyond it all weights are 0.
    """
    cells = (places - start) / (end - start) * num_cells - 0.5
    inside = (places >= start) & (places <= end)
    distance = np.abs(np.clip(cells, 0, num_cells - 1)[:, None] - np.arange(num_cells))
    return np.where(inside[:, None], np.maximum(0.0, 1.0 - distance), 0.0)


def overlaps(num_pixels: int, start: float, end: float, num_cells: int) -> np.ndarray:
    """(num_cells, num_pixels): fraction of each cell from `start` to `end` that each pixel covers."""
    borders = np.linspace(start, end, num_cells + 1)
    pixels = np.arange(num_pixels)
    covered = np.minimum(borders[1:, None], pixels + 1) - np.maximum(borders[:-1, None], pixels)
    return np.maximum(covered, 0.0) / ((end - start) / num_cells)


def _on(weights: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(weights.astype(np.float32)).to(device, non_blocking=True)
