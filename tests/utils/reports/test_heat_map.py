"""Heat maps: colours by value, and grey where there is none."""

from __future__ import annotations

import numpy as np

from utils.reports.heat_map import heat_map


def test_low_is_blue_high_is_red_and_the_unseen_is_dark_and_grey():
    image = np.full((1, 3, 3), 128, np.uint8)
    low, high, unseen = np.asarray(heat_map(image, np.array([[0.05, 0.95, np.nan]], np.float32)))[0].astype(
        int
    )
    assert low[2] > low[0]
    assert high[0] > high[2]
    assert unseen.min() == unseen.max() < 64


def test_the_image_shows_through():
    dark, light = (np.asarray(heat_map(np.full((1, 1, 3), v, np.uint8), np.ones((1, 1)))) for v in (0, 255))
    assert (light.astype(int) - dark).min() > 50
