"""Loss curves of a training run."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from model.errors import UserError
from model.files import read_text, split_lines
from utils.common.files import write_whole


def read_curves(path: str | Path, names: Sequence[str]) -> dict[str, list[tuple[int, float]]]:
    """Curves of (step, value) from a file of JSON lines such as a run's losses.jsonl.

    A resumed run repeats some steps; the last value of a step counts.
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
    """One panel for each curve of (step, value): every value in a pale colour, a running mean on top.

    The suffix of `path` decides the format: .png, .svg, .pdf. Raises UserError when no curve has a point.
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
    stream = io.BytesIO()
    figure.savefig(stream, format=Path(path).suffix.removeprefix("."), dpi=150)
    write_whole(Path(path), stream.getvalue())


def running_mean(values: np.ndarray, radius: int) -> np.ndarray:
    """Mean over 2 * radius + 1 values around each; fewer at the ends."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    low = np.maximum(np.arange(len(values)) - radius, 0)
    high = np.minimum(np.arange(len(values)) + radius + 1, len(values))
    return (total[high] - total[low]) / (high - low)
