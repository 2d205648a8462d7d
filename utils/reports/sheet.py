"""Sheets of samples: image | ground truth | prediction | legend."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from utils.common.label_values import UNCLAIMED
from utils.reports.colours import MASK_COLOURS, class_colour, palette
from utils.reports.drawing import (
    GAP,
    INK,
    MARGIN,
    PALE,
    PAPER,
    LegendEntry,
    draw_legend,
    font,
    overlay,
    resize_labels,
)

LEGEND_WIDTH = 168  # in pixels


@dataclass(frozen=True, kw_only=True)
class SheetRow:
    """One sample of a sheet."""

    image: np.ndarray  # (height, width, 3) uint8
    truth: np.ndarray  # (height, width) indices into colours; any other value is no class
    prediction: np.ndarray  # (height, width) the same
    colours: np.ndarray  # (num_colours, 3) uint8
    legend: tuple[LegendEntry, ...]
    score: float = math.nan  # how good the prediction is, 0 to 1
    source: str = ""  # the image file


def semantic_row(
    image: np.ndarray,
    truth: np.ndarray,
    prediction: np.ndarray,
    classes: Sequence[str],
    iou: np.ndarray,
    absent: Sequence[int] | None = None,
) -> SheetRow:
    """A sample whose legend lists the classes of ground truth and prediction, large ones first.

    Each class has its IoU beside it or, where that is 0, a word: "missed" if the prediction has no pixel of it,
    "invented" if the class is known to be absent, "not labelled" if its presence is unknown. The score is the mean
    IoU.

    Args:
        iou: (num_classes,) of this image alone, NaN for a class in neither map.
        absent: classes that are known not to be in the image; None: all that the ground truth does not show.
    """
    sizes = [
        np.bincount(labels[(labels >= 0) & (labels < len(classes))], minlength=len(classes))
        for labels in (truth, prediction)
    ]
    shown = [int(k) for k in np.argsort(-(sizes[0] + sizes[1]), kind="stable") if np.isfinite(iou[k])]
    legend = []
    for k in shown:
        note = f"{iou[k]:.2f}"
        if not sizes[1][k]:
            note = "missed"
        elif not sizes[0][k]:
            note = "invented" if absent is None or k in absent else "not labelled"
        legend.append(LegendEntry(name=classes[k], colour=class_colour(classes[k]), note=note))
    return SheetRow(
        image=image,
        truth=truth,
        prediction=prediction,
        colours=palette(classes),
        legend=tuple(legend),
        score=float(np.mean(iou[shown])) if shown else math.nan,
    )


def mask_row(
    image: np.ndarray, truth: np.ndarray, prediction: np.ndarray, *, question: str, answer: str, iou: float
) -> SheetRow:
    """A sample with one mask (non-zero is inside); the legend holds the IoU, the question and the answer."""
    return SheetRow(
        image=image,
        truth=np.where(truth, 0, UNCLAIMED),
        prediction=np.where(prediction, 0, UNCLAIMED),
        colours=np.array([MASK_COLOURS[0]], dtype=np.uint8),
        legend=(
            LegendEntry(
                name="mask", colour=MASK_COLOURS[0], note="not judged" if math.isnan(iou) else f"{iou:.2f}"
            ),
            LegendEntry(name=question),
            LegendEntry(name=answer or "(no answer)", pale=True),
        ),
        score=iou,
    )


def draw_sheet(rows: Sequence[SheetRow], *, title: str = "", cell: int = 224) -> Image.Image:
    """One row for each sample: image | ground truth | prediction | legend. Five and more go into two columns.

    cell: side in pixels of the square that an image is fitted into; wide images take less height.
    """
    if not rows:
        raise ValueError("a sheet needs at least one row")
    num_blocks = 2 if len(rows) > 4 else 1
    per_block = -(-len(rows) // num_blocks)
    blocks = [rows[start : start + per_block] for start in range(0, len(rows), per_block)]
    # Samples beside each other share a height.
    heights = [max(_fit(row, cell)[0] for row in rows[number::per_block]) for number in range(per_block)]
    tops = np.cumsum([MARGIN + (40 if title else 0) + 24, *(height + GAP for height in heights)]).tolist()
    block_width = 3 * (cell + GAP) + LEGEND_WIDTH
    sheet = Image.new("RGB", (num_blocks * (block_width + 2 * MARGIN), tops[-1] + MARGIN - GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, MARGIN - 4), title, font=font(22), fill=INK)
    for block, members in enumerate(blocks):
        columns = [MARGIN + block * (block_width + 2 * MARGIN) + k * (cell + GAP) for k in range(4)]
        for x, heading in zip(columns, ("image", "ground truth", "prediction", "legend"), strict=True):
            draw.text((x, tops[0] - 22), heading, font=font(14), fill=PALE)
        for row, top, height in zip(members, tops, heights, strict=False):
            for x, drawn in zip(columns, _cells(row, (cell, height)), strict=False):
                sheet.paste(drawn, (x, top))
            draw_legend(draw, (columns[3], top, columns[3] + LEGEND_WIDTH, top + height), row.legend)
    return sheet


def _fit(row: SheetRow, cell: int) -> tuple[int, int]:
    """(height, width) of a sample's image fitted into a square."""
    height, width = row.image.shape[:2]
    scale = cell / max(height, width)
    return max(round(height * scale), 1), max(round(width * scale), 1)


def _cells(row: SheetRow, cell: tuple[int, int]) -> list[Image.Image]:
    """Image, ground truth and prediction, each centred in a white cell of (width, height)."""
    size = _fit(row, cell[0])
    image = np.asarray(Image.fromarray(row.image).resize(size[::-1], Image.Resampling.LANCZOS))
    arrays = [image]
    for labels in (row.truth, row.prediction):
        arrays.append(overlay(image, resize_labels(labels, size), row.colours))
    centred = []
    for array in arrays:
        square = Image.new("RGB", cell, PAPER)
        square.paste(Image.fromarray(array), ((cell[0] - size[1]) // 2, (cell[1] - size[0]) // 2))
        centred.append(square)
    return centred
