"""Resizing, compared with Pillow."""

import numpy as np
import pytest
from PIL import Image

from model.image_resize import (
    channels_first,
    has_short_weights,
    resize_bilinear,
    resize_fast,
    resize_with_torch,
)

# (height, width) of images, common ones and odd ones.
SIZES = (
    (480, 640),
    (640, 480),
    (427, 640),
    (375, 500),
    (333, 500),
    (512, 683),
    (61, 1024),
    (37, 53),
    (1, 1),
    (3, 7),
)


def target(height: int, width: int, longest: int) -> tuple[int, int]:
    scale = longest / max(height, width)
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


@pytest.mark.parametrize("size", [*SIZES, (1200, 1600), (1000, 700), (1024, 1024)])
@pytest.mark.parametrize("kind", ["noise", "edges"])
def test_bilinear_is_pillows_pixel_for_pixel(size, kind):
    rng = np.random.default_rng(size)
    image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    if kind == "edges":  # extreme values side by side: the largest differences, and ties
        image = (image > 127).astype(np.uint8) * 255
    after = target(*size, 1024)
    expected = np.asarray(Image.fromarray(image).resize(after[::-1], Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(resize_bilinear(image, after), expected)
    assert np.abs(resize_fast(image, after).astype(int) - expected).max() <= 2


def test_every_enlargement_with_short_weights_is_exact():
    """All of a range of lengths, as a row: what decides whether PyTorch may do it."""
    rng = np.random.default_rng(0)
    checked = 0
    for before in range(1, 130):
        for after in (64, 96, 128):
            if has_short_weights(before, after):
                row = rng.integers(0, 256, (before, 1, 3), dtype=np.uint8)
                expected = np.asarray(Image.fromarray(row).resize((1, after), Image.Resampling.BILINEAR))
                np.testing.assert_array_equal(resize_with_torch(row, (after, 1), "bilinear"), expected)
                checked += 1
    assert checked > 150


def test_weights_are_long_when_an_image_shrinks_or_the_ratio_is_odd():
    assert has_short_weights(480, 768)
    assert has_short_weights(640, 1024)
    assert not has_short_weights(427, 683)
    assert not has_short_weights(1600, 1024)


def test_an_image_that_may_not_be_written_to_is_no_trouble(recwarn):
    image = np.zeros((3, 4, 3), dtype=np.uint8)
    image.flags.writeable = False
    assert resize_fast(image, (6, 8)).shape == resize_bilinear(image, (6, 8)).shape == (6, 8, 3)
    assert not recwarn.list


def test_channels_first_is_the_transposed_image():
    rng = np.random.default_rng(0)
    for image in (
        rng.integers(0, 256, (5, 7, 3), dtype=np.uint8),
        rng.integers(0, 256, (3, 5, 7), dtype=np.uint8).transpose(1, 2, 0),
        rng.integers(0, 256, (1, 1, 3), dtype=np.uint8),
    ):
        planes = channels_first(image)
        np.testing.assert_array_equal(planes, image.transpose(2, 0, 1))
        assert planes.flags.c_contiguous
