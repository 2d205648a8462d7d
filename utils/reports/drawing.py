"""Drawing label maps over images: tint, outlines, legends, letters."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from utils.reports.colours import Colour

MARGIN, GAP = 24, 8  # of a sheet, in pixels
LETTERS, LINE, SWATCH = 13, 19, 12  # of a legend, in pixels
LEGEND_WIDTH = 200
MIN_LEGEND_HEIGHT = 320  # room that a legend gets if it needs it, beside an image however low
INK, PALE, PAPER, RULE = (33, 37, 41), (134, 142, 150), (255, 255, 255), (222, 226, 230)
PIXELS_AT_ONCE = 2**20  # that are tinted in float64


def font(size: int) -> ImageFont.FreeTypeFont:
    """Pillow's own scalable font, which gives the same pixels on every machine."""
    loaded = ImageFont.load_default(size)
    assert isinstance(loaded, ImageFont.FreeTypeFont), "Pillow was built without FreeType"
    return loaded


def overlay(image: np.ndarray, labels: np.ndarray, colours: np.ndarray, *, alpha: float = 0.6) -> np.ndarray:
    """Tint an image by a label map and draw a light line where two labels meet.

    Args:
        image: (height, width, 3) uint8.
        labels: (height, width) integers, indices into `colours`; where it is none (UNCLAIMED, ignored) the image is
            darkened.
        colours: (num_colours, 3) uint8.

    Returns:
        (height, width, 3) uint8.
    """
    edge, shaded = outline(labels), np.empty(image.shape, dtype=np.uint8)
    rows = max(PIXELS_AT_ONCE // max(image.shape[1], 1), 1)
    for top in range(0, len(image), rows):  # in float64, the largest image would take 10 GB at once
        band = slice(top, top + rows)
        shaded[band] = _tinted(image[band], labels[band], colours, edge[band], alpha)
    return shaded


def _tinted(
    image: np.ndarray, labels: np.ndarray, colours: np.ndarray, edge: np.ndarray, alpha: float
) -> np.ndarray:
    """`overlay` of some rows; edge: (height, width) bool, where the line is."""
    known = (labels >= 0) & (labels < len(colours))
    grey = image.mean(axis=2, keepdims=True)
    shaded = 0.5 * (0.5 * image + 0.5 * grey)  # of no class: half the saturation, half the brightness
    if known.any():
        tint = colours[labels[known]].astype(np.float64)
        shaded[known] = (1 - alpha) * image[known] + alpha * tint
    shaded[edge] = 0.25 * shaded[edge] + 0.75 * 255
    return shaded.round().clip(0, 255).astype(np.uint8)


def outline(labels: np.ndarray) -> np.ndarray:
    """(height, width) bool: pixels whose right or lower neighbour has another label."""
    edge = np.zeros(labels.shape, dtype=bool)
    edge[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    edge[:-1] |= labels[:-1] != labels[1:]
    return edge


def shrunk_size(image: np.ndarray, longest_side: int) -> tuple[int, int]:
    """(height, width) of an image whose longest side is at most `longest_side`; smaller ones stay as they are."""
    height, width = image.shape[:2]
    scale = min(longest_side / max(height, width), 1)
    return max(round(height * scale), 1), max(round(width * scale), 1)


def resize_labels(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Nearest neighbour to (height, width), so that ids stay ids."""
    rows = np.arange(size[0]) * labels.shape[0] // size[0]
    columns = np.arange(size[1]) * labels.shape[1] // size[1]
    return labels[np.ix_(rows, columns)]


@dataclass(frozen=True, kw_only=True)
class LegendEntry:
    """One line of a legend; without a colour it is a remark, which may take several lines."""

    name: str
    colour: Colour | None = None
    note: str = ""  # right-aligned, for instance an IoU
    pale: bool = False


def draw_legend(
    draw: ImageDraw.ImageDraw, box: tuple[int, int, int, int], entries: Sequence[LegendEntry]
) -> None:
    """Write entries into (left, top, right, bottom), one per line; the last line counts those that do not fit."""
    left, top, right, bottom = box
    letters = font(LETTERS)
    room = max((bottom - top) // LINE, 1)
    lines = legend_lines(entries, right - left)
    if len(lines) > room:
        lines = [*lines[: room - 1], LegendEntry(name=f"and {len(lines) - room + 1} more", pale=True)]
    for number, entry in enumerate(lines):
        y = top + number * LINE
        if entry.colour is not None:
            draw.rounded_rectangle(
                (left, y + 2, left + SWATCH, y + 2 + SWATCH), 3, fill=entry.colour, outline=RULE
            )
        draw.text((left + SWATCH + 8, y), entry.name, font=letters, fill=PALE if entry.pale else INK)
        if entry.note:
            draw.text((right, y), entry.note, font=letters, fill=PALE, anchor="ra")


def legend_lines(entries: Sequence[LegendEntry], width: int) -> list[LegendEntry]:
    """The lines of a legend that is `width` pixels wide."""
    letters = font(LETTERS)
    return [part for entry in entries for part in _legend_lines(entry, letters, width - SWATCH - 8)]


def _legend_lines(entry: LegendEntry, letters: ImageFont.FreeTypeFont, width: int) -> list[LegendEntry]:
    """Wrap a remark; truncate the name of a class, which shares its line with the note."""
    per_line = max(int(width / letters.getlength("n")), 6)
    if entry.colour is None:
        wrapped = textwrap.wrap(entry.name, per_line)
        return [LegendEntry(name=text, pale=entry.pale) for text in wrapped]
    note_width = letters.getlength(entry.note + "  ") if entry.note else 0
    name = entry.name
    while len(name) > 2 and letters.getlength(name) > width - note_width:
        name = name[:-2].rstrip(" .…") + "…"
    return [LegendEntry(name=name, colour=entry.colour, note=entry.note)]


def annotate(
    image: np.ndarray, labels: np.ndarray, colours: np.ndarray, entries: Sequence[LegendEntry]
) -> Image.Image:
    """An overlay at the image's size (small images are enlarged) with its legend on the right.

    Low images get white below them where the legend needs it.
    """
    scale = max(1, round(480 / max(image.shape[:2])))
    height, width = scale * image.shape[0], scale * image.shape[1]
    enlarged = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))
    num_lines = len(legend_lines(entries, LEGEND_WIDTH - 26))
    full_height = max(height, min(num_lines * LINE + 20, MIN_LEGEND_HEIGHT))
    canvas = Image.new("RGB", (width + LEGEND_WIDTH, full_height), PAPER)
    canvas.paste(Image.fromarray(overlay(enlarged, resize_labels(labels, (height, width)), colours)), (0, 0))
    draw_legend(ImageDraw.Draw(canvas), (width + 14, 12, width + LEGEND_WIDTH - 12, full_height - 8), entries)
    return canvas
