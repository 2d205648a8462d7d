"""What stands for an image in the text, and where its tokens lie.

Positions have one axis, which counts tokens, or three (M-RoPE of the Qwen family: time, row, column). An image of two
by three cells at position 4, three axes:

# ids    <s> USER : \n  img img img img img img   what
# time    0    1  2  3    4   4   4   4   4   4      7     text goes on after the largest position
# row     0    1  2  3    4   4   4   5   5   5      7
# column  0    1  2  3    4   5   6   4   5   6      7
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Cells = tuple[int, int]  # (rows, columns) of an image's tokens


@dataclass(frozen=True, kw_only=True)
class Placeholder:
    """The tokens that stand for one image in the text, some of which the image's features replace."""

    ids: tuple[int, ...]
    num_image_tokens: int  # how many of `ids` are the image token
    cells: Cells | None = None  # where positions have three axes; `ids` are image tokens only, row by row


def token_positions(length: int, image_start: int, cells: Cells | None) -> np.ndarray:
    """Positions (axes, length) int64 of a text; one axis without `cells`, else three.

    Args:
        image_start: index of the first of the rows x columns tokens of the image.
    """
    positions = np.arange(length)[None]
    if cells is None:
        return positions
    rows, columns = cells
    positions = np.repeat(positions, 3, axis=0)
    end = image_start + rows * columns
    cell = np.arange(rows * columns)
    positions[:, image_start:end] = image_start + np.stack([0 * cell, cell // columns, cell % columns])
    positions[:, end:] = image_start + max(cells) + np.arange(length - end)
    return positions
