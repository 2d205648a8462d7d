"""One colour for each class, from its name alone: the same in every image, data set and session."""

from __future__ import annotations

import colorsys
import zlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

Colour = tuple[int, int, int]  # red, green, blue, 0..255

# For masks without a class name, in the order of the answer.
MASK_COLOURS: tuple[Colour, ...] = (
    (255, 77, 77),
    (50, 130, 246),
    (255, 190, 11),
    (46, 184, 114),
    (180, 90, 240),
    (255, 120, 30),
    (0, 190, 200),
    (240, 80, 170),
)

# Frequent classes have the colour that people expect; that of all others is a hash of their name.
FAMILIAR: dict[str, Colour] = {
    "sky": (106, 190, 240),
    "sea": (28, 100, 180),
    "water": (60, 140, 200),
    "river": (46, 122, 190),
    "grass": (112, 200, 60),
    "tree": (30, 120, 50),
    "plant": (70, 160, 100),
    "field": (170, 200, 80),
    "mountain": (140, 120, 160),
    "hill": (150, 160, 90),
    "sand": (238, 210, 130),
    "earth": (160, 120, 80),
    "path": (200, 170, 130),
    "rock": (120, 120, 130),
    "snow": (215, 235, 245),
    "cloud": (200, 215, 230),
    "clouds": (200, 215, 230),
    "road": (100, 90, 115),
    "sidewalk": (190, 150, 190),
    "building": (205, 92, 70),
    "house": (245, 140, 60),
    "wall": (180, 180, 165),
    "floor": (150, 110, 90),
    "fence": (190, 140, 80),
    "person": (235, 40, 80),
    "rider": (255, 90, 150),
    "dog": (150, 75, 20),
    "cat": (240, 170, 110),
    "horse": (120, 60, 60),
    "bird": (60, 200, 200),
    "car": (40, 70, 230),
    "bus": (250, 180, 20),
    "truck": (100, 60, 200),
    "bicycle": (190, 30, 160),
    "boat": (255, 110, 30),
    "ship": (200, 80, 40),
    "airplane": (90, 130, 255),
    "ball": (255, 210, 0),
    "sports ball": (255, 210, 0),
    "flag": (220, 20, 200),
    "kite": (255, 60, 200),
    "umbrella": (0, 190, 150),
    "bench": (140, 90, 40),
    "traffic light": (250, 220, 60),
    "pole": (160, 160, 175),
}


@lru_cache(maxsize=4096)
def class_colour(name: str) -> Colour:
    """The colour of a class, from its name alone."""
    if name in FAMILIAR:
        return FAMILIAR[name]
    number = zlib.crc32(name.encode())
    hue, saturation, value = (
        number % 360 / 360,
        (0.55, 0.75, 0.9)[number // 360 % 3],
        (0.95, 0.75)[number // 1080 % 2],
    )
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def palette(classes: Sequence[str]) -> np.ndarray:
    """The colours of all classes, (num_classes, 3) uint8."""
    return np.array([class_colour(name) for name in classes], dtype=np.uint8).reshape(-1, 3)
