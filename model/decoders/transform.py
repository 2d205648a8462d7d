"""How an image becomes the pixels of a mask decoder, on the CPU: uint8 in, uint8 out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from model.errors import UserError
from model.image_resize import channels_first, resize_bilinear, resize_fast
from model.inputs import Size

LONGEST_SIDE, SQUARE = "longest_side", "square"
RESIZES = (LONGEST_SIDE, SQUARE)


@dataclass(frozen=True)
class ImageTransform:
    """Resizes images for a mask decoder; padding and normalisation happen in the decoder, on its device.

    "longest_side" keeps the aspect ratio (SAM), "square" does not (SAM 2, SAM 3).
    """

    side: int  # of the decoder's input, pixels
    resize: str = LONGEST_SIDE

    def __post_init__(self) -> None:
        if self.resize not in RESIZES:
            raise UserError(f"unknown sam_resize {self.resize!r}; known: {', '.join(RESIZES)}")

    def size(self, height: int, width: int) -> Size:
        """(height, width) of an image after resizing, without padding."""
        if self.resize == SQUARE:
            return self.side, self.side
        return longest_side_size(height, width, self.side)

    def __call__(self, image: np.ndarray, *, fast: bool = False) -> np.ndarray:
        """(height, width, 3) uint8 -> (3, h, w) uint8, not padded; with `fast`, within two grey levels."""
        resize = resize_fast if fast else resize_bilinear
        return channels_first(resize(image, self.size(image.shape[0], image.shape[1])))


def longest_side_size(height: int, width: int, longest_side: int) -> Size:
    """(height, width) after resizing to `longest_side`, rounded as segment_anything does."""
    scale = longest_side * 1.0 / max(height, width)
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))
