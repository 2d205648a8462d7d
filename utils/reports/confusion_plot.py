"""A confusion matrix as an image: which classes are predicted as which."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from utils.common.files import write_whole
from utils.common.terminal import printable

MOST_CLASSES = 32  # as many rows as one can read; of longer lists those with the most wrong pixels are drawn
NO_CLASS = "(no mask)"
OTHERS = "(others)"


def draw_confusion(
    counts: np.ndarray, classes: Sequence[str], path: str | Path, *, title: str = "", most: int = MOST_CLASSES
) -> None:
    """Draw a confusion matrix, row-normalised in percent: rows are true classes, columns predicted ones.

    Args:
        counts: (num_classes + 1, num_classes + 1) pixels by true and predicted class; the last column counts
            pixels that no mask claims, the last row those of no class.
        classes: (num_classes,) names.
        path: of the image; its suffix decides the format.
    """
    from matplotlib.figure import Figure  # here: half a second that only this function needs

    shown = most_confused(counts, most)
    shares, num_others = shares_of(counts, shown)
    columns = [classes[k] for k in shown] + ([OTHERS] if num_others else []) + [NO_CLASS]
    size = max(4.0, 0.24 * len(shown))
    figure = Figure(figsize=(size + 3.2, size + 2.6), layout="constrained")
    panel = figure.subplots()
    drawn = panel.imshow(100 * shares, cmap="Blues", vmin=0, vmax=100, aspect="auto")
    panel.set_yticks(range(len(shown)), [_plain(_short(classes[k])) for k in shown], fontsize=8)
    panel.set_xticks(range(len(columns)), [_plain(_short(name)) for name in columns], fontsize=8, rotation=90)
    panel.set_ylabel("true class")
    panel.set_xlabel("predicted class")
    if len(shown) <= 16:
        for (row, column), share in np.ndenumerate(shares):
            if share >= 0.005:
                colour = "white" if share > 0.6 else "#212529"
                panel.text(
                    column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=7, color=colour
                )
    num_left_out = int(np.count_nonzero(counts[:-1].sum(axis=1))) - len(shown)
    left_out = f"; the {len(shown)} with most wrong pixels" if num_left_out else ""
    panel.set_title(
        f"{_plain(title)}: percent of each true class's pixels{left_out}".removeprefix(": "),
        loc="left",
        fontsize=10,
    )
    figure.colorbar(drawn, ax=panel, shrink=0.6)
    stream = io.BytesIO()
    figure.savefig(stream, format=Path(path).suffix.removeprefix("."), dpi=130)
    write_whole(Path(path), stream.getvalue())


def most_confused(counts: np.ndarray, most: int) -> list[int]:
    """The classes to draw, in the order of the list: those that occur, or the `most` with the most wrong pixels."""
    missed = counts[:-1].sum(axis=1) - np.diagonal(counts)[:-1]
    false_positives = counts[:, :-1].sum(axis=0) - np.diagonal(counts)[:-1]
    occurs = np.flatnonzero(counts[:-1].sum(axis=1))
    ranked = sorted(occurs.tolist(), key=lambda k: (-(missed[k] + false_positives[k]), k))
    return sorted(ranked[:most])


def shares_of(counts: np.ndarray, shown: Sequence[int]) -> tuple[np.ndarray, int]:
    """Row-normalised counts of the classes shown.

    Returns:
        (num_shown, num_columns) fractions of each row: a column for each class shown, one for all other predicted
        classes if there are any, one for no mask; and the number of those other classes.
    """
    rows = counts[list(shown)].astype(np.float64)
    rest = np.setdiff1d(np.arange(counts.shape[1] - 1), shown)
    num_others = int(np.count_nonzero(counts[:, rest].any(axis=0)))
    others = [rows[:, rest].sum(axis=1, keepdims=True)] if num_others else []
    cells = np.concatenate([rows[:, list(shown)], *others, rows[:, -1:]], axis=1)
    return cells / np.maximum(rows.sum(axis=1, keepdims=True), 1), num_others


def _short(name: str) -> str:
    return name if len(name) <= 22 else name[:21] + "…"


def _plain(text: str) -> str:
    """Text that Matplotlib draws as it is: "$" begins a formula, and its warnings print control characters."""
    return printable(text).replace("$", r"\$")
