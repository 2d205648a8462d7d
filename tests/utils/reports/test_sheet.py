"""Sheets: every sample with its legend, whatever the shape of its image."""

from __future__ import annotations

import numpy as np
import pytest

from tests.utils.reports.scenes import CLASSES, scene
from utils.reports.colours import class_colour
from utils.reports.sheet import draw_sheet, mask_row, semantic_row


def test_the_legend_of_a_scene_lists_its_classes_with_their_iou_the_largest_first():
    image, truth, prediction = scene()
    truth[:8] = 3  # not in the prediction
    truth[truth == 2], prediction[30] = 1, 2  # only in the prediction
    row = semantic_row(image, truth, prediction, CLASSES, np.array([0.8, 0.9, 0.0, 0.0]))
    assert [(entry.name, entry.note) for entry in row.legend] == [
        ("grass", "0.90"),
        ("sky", "0.80"),
        (CLASSES[3], "missed"),
        ("person", "invented"),
    ]
    assert all(entry.colour == class_colour(entry.name) for entry in row.legend)


def test_a_sheet_of_eight_scenes_has_two_blocks_and_shows_their_colours():
    image, truth, prediction = scene()
    row = semantic_row(image, truth, prediction, CLASSES, np.array([0.8, 0.9, 0.5, np.nan]))
    sheet = draw_sheet([row] * 8, title="Held-out scenes", cell=160)
    four = draw_sheet([row] * 4, title="Held-out scenes", cell=160)
    assert sheet.height == four.height
    assert sheet.width == 2 * four.width
    seen = {colour for _, colour in sheet.getcolors(maxcolors=2**24)}
    assert {class_colour(name) for name in ("sky", "grass", "person")} <= seen


def test_images_of_other_shapes_fit_into_the_same_sheet():
    image, truth, prediction = scene()
    wide = semantic_row(image, truth, prediction, CLASSES, np.full(4, np.nan))
    tall = mask_row(
        image.transpose(1, 0, 2).copy(),
        truth.T == 1,
        truth.T == 2,
        question="what? " * 60,
        answer="",
        iou=0.5,
    )
    sheet = draw_sheet([wide, tall], cell=100)
    assert sheet.height < (67 + 8) + (100 + 8) + 80
    with pytest.raises(ValueError, match="at least one row"):
        draw_sheet([])
