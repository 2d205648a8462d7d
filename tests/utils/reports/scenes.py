"""A scene to draw."""

from __future__ import annotations

import numpy as np

from utils.common.label_values import IGNORE, UNCLAIMED

CLASSES = ("sky", "grass", "person", "awning, sunshade, sunblind made of a very long name")


def scene() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image, truth with an ignored corner, prediction with an unclaimed band."""
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    truth = np.zeros((40, 60), dtype=np.uint16)
    truth[20:], truth[10:30, 20:30], truth[:4, :4] = 1, 2, IGNORE
    prediction = truth.astype(np.int16)
    prediction[truth == IGNORE] = 0
    prediction[15:18] = UNCLAIMED
    return image, truth, prediction
