"""Overlays: what is tinted, what is not, and that the legend fits."""

from __future__ import annotations

import numpy as np
from PIL import Image
from scipy import ndimage

from tests.utils.reports.scenes import CLASSES, scene
from utils.common.label_values import IGNORE, UNCLAIMED
from utils.reports import drawing
from utils.reports.colours import class_colour, palette
from utils.reports.drawing import LegendEntry, annotate, outline, overlay, resize_labels


def test_a_class_has_the_same_colour_in_every_list():
    assert tuple(palette(["sky", "flag"])[1]) == tuple(palette(["a", "b", "flag"])[2]) == class_colour("flag")
    names = [f"class {k}" for k in range(150)]
    assert len({class_colour(name) for name in names}) > 120
    assert palette([]).shape == (0, 3)


def test_overlay_tints_known_classes_and_darkens_the_rest():
    image, truth, _ = scene()
    colours = palette(CLASSES)
    drawn = overlay(image, truth, colours, alpha=0.6)
    assert drawn.shape == image.shape
    assert drawn.dtype == np.uint8
    inside = (truth == 1) & ~outline(truth)
    expected = 0.4 * image[inside] + 0.6 * colours[1]
    assert np.abs(drawn[inside] - expected).max() <= 0.5 + 1e-9
    ignored = (truth == IGNORE) & ~outline(truth)
    assert drawn[ignored].mean() < 0.6 * image[ignored].mean()
    assert (overlay(image, np.full((40, 60), UNCLAIMED), colours) <= image.max(axis=2, keepdims=True)).all()


def test_an_overlay_in_bands_is_the_same(monkeypatch):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (50, 7, 3), dtype=np.uint8)
    labels, colours = rng.integers(-1, 4, (50, 7)), rng.integers(0, 256, (3, 3), dtype=np.uint8)
    whole = drawing.overlay(image, labels, colours)
    monkeypatch.setattr(drawing, "PIXELS_AT_ONCE", 20)
    assert np.array_equal(drawing.overlay(image, labels, colours), whole)


def test_outline_lies_exactly_where_a_region_touches_another():
    _, truth, _ = scene()
    # A pixel is on the border when the largest and smallest label of itself, right and below differ.
    window = np.array([[0, 0, 0], [0, 1, 1], [0, 1, 0]], dtype=bool)
    highest = ndimage.maximum_filter(truth, footprint=window, mode="nearest")
    lowest = ndimage.minimum_filter(truth, footprint=window, mode="nearest")
    np.testing.assert_array_equal(outline(truth), highest != lowest)


def test_resized_labels_hold_only_ids_that_were_there():
    _, truth, _ = scene()
    larger = resize_labels(truth, (97, 131))
    assert larger.shape == (97, 131)
    assert set(np.unique(larger)) == set(np.unique(truth))
    np.testing.assert_array_equal(resize_labels(np.repeat(truth, 3, axis=0), (40, 60)), truth)


def test_an_annotated_image_has_its_legend_at_the_right():
    image, truth, _ = scene()
    entries = [LegendEntry(name=name, colour=class_colour(name)) for name in CLASSES]
    drawn = annotate(
        image, truth, palette(CLASSES), [*entries, LegendEntry(name="not in the image: dog", pale=True)]
    )
    assert isinstance(drawn, Image.Image)
    assert drawn.size == (480 + 200, 320)
    right = np.asarray(drawn)[:, 480:]
    assert (right == class_colour("sky")).all(axis=2).any()
