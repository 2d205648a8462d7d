"""Pictures for people: coloured overlays, a sheet of scenes, the losses of a run."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from model.errors import UserError
from model.files import read_text, split_lines
from utils.common.label_values import UNCLAIMED
from utils.reports.colours import MASK_COLOURS, Colour, class_colour, palette

MARGIN, GAP, LEGEND_WIDTH = 24, 8, 168  # of a sheet, in pixels
INK, PALE, PAPER, RULE = (33, 37, 41), (134, 142, 150), (255, 255, 255), (222, 226, 230)


def font(size: int) -> ImageFont.FreeTypeFont:
    """Pillow's own scalable font: the same pixels on every machine."""
    return ImageFont.load_default(size)


# ----------------------------------------------------------------------------------------- overlays


def overlay(image: np.ndarray, labels: np.ndarray, colours: np.ndarray, *, alpha: float = 0.6) -> np.ndarray:
    """Tint an image by a label map and draw a light line where two labels meet.

    Args:
        image: (height, width, 3) uint8.
        labels: (height, width) integers, an index into `colours`; where it is none (UNCLAIMED, ignored), the
            image shows, darkened.
        colours: (num_colours, 3) uint8.

    Returns:
        (height, width, 3) uint8.
    """
    known = (labels >= 0) & (labels < len(colours))
    grey = image.mean(axis=2, keepdims=True)
    shaded = 0.5 * (0.5 * image + 0.5 * grey)  # not claimed: half its colour, half its light
    if known.any():
        tint = colours[labels[known]].astype(np.float64)
        shaded[known] = (1 - alpha) * image[known] + alpha * tint
    edge = outline(labels)
    shaded[edge] = 0.25 * shaded[edge] + 0.75 * 255
    return shaded.round().clip(0, 255).astype(np.uint8)


def outline(labels: np.ndarray) -> np.ndarray:
    """(height, width) bool: pixels whose right or lower neighbour has another label."""
    edge = np.zeros(labels.shape, dtype=bool)
    edge[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    edge[:-1] |= labels[:-1] != labels[1:]
    return edge


def resize_labels(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Nearest neighbour to (height, width); ids stay ids."""
    rows = np.arange(size[0]) * labels.shape[0] // size[0]
    columns = np.arange(size[1]) * labels.shape[1] // size[1]
    return labels[np.ix_(rows, columns)]


@dataclass(frozen=True, kw_only=True)
class LegendEntry:
    """One line of a legend; without a colour it is a remark of any length."""

    name: str
    colour: Colour | None = None
    note: str = ""  # printed at the right, an IoU for instance
    pale: bool = False


def draw_legend(
    draw: ImageDraw.ImageDraw, box: tuple[int, int, int, int], entries: Sequence[LegendEntry]
) -> None:
    """Write entries into (left, top, right, bottom), one a line; the last line counts what does not fit."""
    left, top, right, bottom = box
    size = 13
    line, swatch = 19, 12
    letters = font(size)
    room = max((bottom - top) // line, 1)
    lines = [part for entry in entries for part in _legend_lines(entry, letters, right - left - swatch - 8)]
    if len(lines) > room:
        lines = [*lines[: room - 1], LegendEntry(name=f"and {len(lines) - room + 1} more", pale=True)]
    for number, entry in enumerate(lines):
        y = top + number * line
        if entry.colour is not None:
            draw.rounded_rectangle(
                (left, y + 2, left + swatch, y + 2 + swatch), 3, fill=entry.colour, outline=RULE
            )
        draw.text((left + swatch + 8, y), entry.name, font=letters, fill=PALE if entry.pale else INK)
        if entry.note:
            draw.text((right, y), entry.note, font=letters, fill=PALE, anchor="ra")


def _legend_lines(entry: LegendEntry, letters: ImageFont.FreeTypeFont, width: int) -> list[LegendEntry]:
    """Break a remark into lines; cut the name of a class, whose line also holds the note."""
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
    """An overlay at the image's size (small images are enlarged) with its legend at the right."""
    scale = max(1, round(480 / max(image.shape[:2])))
    height, width = scale * image.shape[0], scale * image.shape[1]
    picture = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))
    legend_width = 200
    canvas = Image.new("RGB", (width + legend_width, height), PAPER)
    canvas.paste(Image.fromarray(overlay(picture, resize_labels(labels, (height, width)), colours)), (0, 0))
    draw_legend(ImageDraw.Draw(canvas), (width + 14, 12, width + legend_width - 12, height - 8), entries)
    return canvas


# -------------------------------------------------------------------------------------------- sheet


@dataclass(frozen=True, kw_only=True)
class SheetRow:
    """One scene of a sheet."""

    image: np.ndarray  # (height, width, 3) uint8
    truth: np.ndarray  # (height, width) index into colours; others: nothing
    prediction: np.ndarray  # (height, width) the same
    colours: np.ndarray  # (num_colours, 3) uint8
    legend: tuple[LegendEntry, ...]
    score: float = math.nan  # how good the prediction is, 0 to 1
    source: str = ""  # the file it is about


def semantic_row(
    image: np.ndarray,
    truth: np.ndarray,
    prediction: np.ndarray,
    classes: Sequence[str],
    iou: np.ndarray,
    absent: Sequence[int] | None = None,
) -> SheetRow:
    """A scene with the classes of truth or prediction as legend, large ones first, with the IoU of each or a
    word where it is 0 because one of both is empty. The score is the mean of these IoU.

    iou: (num_classes,) of this image alone, NaN for a class in neither map.
    absent: classes that are known not to be in the image; None: all that the truth does not show.
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
    """A scene with one mask (non-zero is inside); the legend is the question, the answer and the IoU."""
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
    """Scenes below each other, image | ground truth | prediction | legend; from five on in two blocks.

    cell: side in pixels of the square that a picture has to fit into; flat pictures take less height.
    """
    if not rows:
        raise ValueError("a sheet needs at least one row")
    num_blocks = 2 if len(rows) > 4 else 1
    per_block = -(-len(rows) // num_blocks)
    blocks = [rows[start : start + per_block] for start in range(0, len(rows), per_block)]
    # Scenes beside each other share a height.
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
            for x, picture in zip(columns, _cells(row, (cell, height)), strict=False):
                sheet.paste(picture, (x, top))
            draw_legend(draw, (columns[3], top, columns[3] + LEGEND_WIDTH, top + height), row.legend)
    return sheet


def _fit(row: SheetRow, cell: int) -> tuple[int, int]:
    """(height, width) of a scene fitted into a square."""
    height, width = row.image.shape[:2]
    scale = cell / max(height, width)
    return max(round(height * scale), 1), max(round(width * scale), 1)


def _cells(row: SheetRow, cell: tuple[int, int]) -> list[Image.Image]:
    """Image, ground truth and prediction, each centred in (width, height) on paper."""
    size = _fit(row, cell[0])
    image = np.asarray(Image.fromarray(row.image).resize(size[::-1], Image.Resampling.LANCZOS))
    pictures = [image]
    for labels in (row.truth, row.prediction):
        pictures.append(overlay(image, resize_labels(labels, size), row.colours))
    centred = []
    for picture in pictures:
        square = Image.new("RGB", cell, PAPER)
        square.paste(Image.fromarray(picture), ((cell[0] - size[1]) // 2, (cell[1] - size[0]) // 2))
        centred.append(square)
    return centred


# --------------------------------------------------------------------------------------- loss curve


def read_curves(path: str | Path, names: Sequence[str]) -> dict[str, list[tuple[int, float]]]:
    """Curves of (step, value) from a file of JSON lines such as a run's losses.jsonl.

    A resumed run writes some steps again; the last value counts.
    """
    curves: dict[str, dict[int, float]] = {name: {} for name in names}
    for line in split_lines(read_text(path)):
        entry = json.loads(line)
        for name in names:
            if name in entry:
                curves[name][entry["step"]] = entry[name]
    return {name: sorted(points.items()) for name, points in curves.items()}


def save_curves(
    curves: Mapping[str, Sequence[tuple[int, float]]], path: str | Path, *, title: str = ""
) -> None:
    """One small panel for each curve of (step, value): every value pale, a running mean on top.

    The picture's format is that of the file name: .png, .svg, .pdf.
    """
    from matplotlib.figure import Figure  # here: half a second that only this function needs

    curves = {name: points for name, points in curves.items() if len(points)}
    if not curves:
        raise UserError("no curve has a point; was anything logged?")
    num_columns = min(len(curves), 2)
    num_rows = -(-len(curves) // num_columns)
    figure = Figure(figsize=(5 * num_columns, 2.8 * num_rows), layout="constrained")
    panels = figure.subplots(num_rows, num_columns, squeeze=False).ravel()
    for panel, (name, points) in zip(panels, curves.items(), strict=False):
        steps, values = np.array(points, dtype=np.float64).T
        panel.plot(steps, values, color="#a5c8f0", linewidth=0.8)
        panel.plot(steps, running_mean(values, max(len(values) // 40, 1)), color="#1c64b4", linewidth=1.8)
        panel.set_title(name, loc="left", fontsize=11)
        panel.set_xlabel("step", fontsize=9)
        panel.tick_params(labelsize=8)
        panel.grid(color="#e9ecef", linewidth=0.8)
        panel.spines[["top", "right"]].set_visible(False)
        if values.min() >= 0:
            panel.set_ylim(bottom=0)
    for panel in panels[len(curves) :]:
        panel.set_visible(False)
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=13)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def running_mean(values: np.ndarray, radius: int) -> np.ndarray:
    """Mean over 2 * radius + 1 values around each; fewer at the ends."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    low = np.maximum(np.arange(len(values)) - radius, 0)
    high = np.minimum(np.arange(len(values)) + radius + 1, len(values))
    return (total[high] - total[low]) / (high - low)
