"""Heat maps over images: where a spatial prompt looks (`--save_maps`)."""

from __future__ import annotations

import cv2
import numpy as np
from PIL import Image

OPACITY = 0.55  # of the colours
UNSEEN = 0.35  # brightness of what the language model does not see


def heat_map(image: np.ndarray, values: np.ndarray) -> Image.Image:
    """An image under the colours of a map: blue is 0, green a half, red 1; dark and grey where the map is NaN.

    Args:
        image: (height, width, 3) uint8.
        values: (height, width) in 0..1, or NaN.
    """
    known = np.isfinite(values)
    levels = np.where(known, values, 0.0).clip(0, 1) * 255
    colours = cv2.applyColorMap(levels.round().astype(np.uint8), cv2.COLORMAP_TURBO)[..., ::-1]  # BGR -> RGB
    grey = image.mean(axis=2, keepdims=True)
    blended = (1 - OPACITY) * (0.5 * image + 0.5 * grey) + OPACITY * colours
    drawn = np.where(known[..., None], blended, UNSEEN * grey)
    return Image.fromarray(drawn.round().clip(0, 255).astype(np.uint8))
