"""The line of a training step in the terminal: at most 80 columns, with the time that is left."""

from __future__ import annotations

import time
from collections.abc import Mapping

# Short names of the losses. Where there are more than the paper's, those of the masks are added up, and those of the
# spatial prompt's map.
SHOWN = {"total": ("loss",), "cross_entropy": ("ce",), "mask_bce": ("bce", "mask"), "dice": ("dice", "mask")}
FURTHER = {"map_bce": "map", "map_dice": "map", "presence": "presence"}


class StepClock:
    """How long the rest of a run takes: as long as its steps so far, with what was done between them.

    The first step, which allocates and compiles, is left out as soon as there is another one.
    """

    def __init__(self) -> None:
        self._since: float | None = None  # the end of the first step
        self._num_steps = 0

    def seconds_left(self, seconds: float, num_left: int) -> float:
        """After a step that took `seconds`, when there are `num_left` more."""
        now = time.perf_counter()
        if self._since is None:
            self._since = now
            return seconds * num_left
        self._num_steps += 1
        return (now - self._since) / self._num_steps * num_left


def step_line(
    step: int,
    num_steps: int,
    seconds_left: float,
    losses: Mapping[str, float],
    speed: Mapping[str, float],
    *,
    applied: bool = True,
) -> str:
    """12/1800 eta 12:05 loss 1.23 ce 0.90 bce 0.23 dice 0.10 3.1k tok/s 1.2 GB

    Args:
        losses: by their names in `model.losses.Losses`, as they add up.
        speed: as `log.speed_of` gives it.
        applied: whether the step changed the weights.
    """
    has_more = any(name in losses for name in FURTHER)
    shown: dict[str, float] = {}
    for name, titles in SHOWN.items():
        title = titles[-1] if has_more else titles[0]
        shown[title] = shown.get(title, 0.0) + losses.get(name, 0.0)
    for name, title in FURTHER.items():
        if name in losses:
            shown[title] = shown.get(title, 0.0) + losses[name]
    total = str(num_steps)
    parts = [
        f"{step:>{len(total)}}/{total}",
        f"eta {duration(seconds_left):>5}",
        *(f"{title} {digits(value)}" for title, value in shown.items()),
        f"{short(speed['text_tokens_per_second'])} tok/s",
        f"{digits(speed['memory_gb'], 2)} GB",
    ]
    return " ".join(parts) + ("" if applied else " skipped")


def duration(seconds: float) -> str:
    """12:05 (minutes and seconds), 3h05m, 2d04h."""
    minutes = int(seconds) // 60
    if minutes < 60:
        return f"{minutes:02d}:{int(seconds) % 60:02d}"
    hours = minutes // 60
    return f"{hours}h{minutes % 60:02d}m" if hours < 24 else f"{hours // 24}d{hours % 24:02d}h"


def digits(value: float, number: int = 3) -> str:
    """A value with so many significant digits, but whole from where they end: 1.23, 12.3, 123."""
    before = len(str(int(abs(value)))) if abs(value) < 1e9 else number
    return f"{value:.{max(number - before, 0)}f}"


def short(value: float) -> str:
    """0.5, 12, 3.1k, 45k, 1.2M: two significant digits, three below a thousand."""
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{digits(value / size, 2)}{unit}"
    return digits(value, 2)
