"""Shared by the benchmarks: alternating timing of several ways, peak memory, and claims with their bars.

Time is CPU time of this process; with one thread, other programs on the machine hardly matter.
"""

from __future__ import annotations

import ctypes
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
TABLE_HEAD = "| claim | measured | bar | goal | verdict |\n|---|---:|---:|---:|---|"


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A performance claim: `value` must be at least (or at most) `bar`, ideally `goal`."""

    name: str
    value: float
    bar: float | None = None  # None: shown without a bar
    goal: float | None = None
    at_least: bool = True

    @property
    def verdict(self) -> str:
        """ "goal", "bar", "missed", or "" without a bar."""
        if self.bar is None:
            return ""
        if self.goal is not None and self._reaches(self.goal):
            return "goal"
        return "bar" if self._reaches(self.bar) else "missed"

    def row(self) -> str:
        """Its row of a Markdown table under `TABLE_HEAD`."""
        sign = ">=" if self.at_least else "<="
        limits = ["" if limit is None else f"{sign} {limit:g}" for limit in (self.bar, self.goal)]
        return f"| {self.name} | {self.value:.3g} | {limits[0]} | {limits[1]} | {self.verdict} |"

    def to_dict(self) -> dict[str, Any]:
        return {**vars(self), "verdict": self.verdict}

    def _reaches(self, limit: float) -> bool:
        return self.value >= limit if self.at_least else self.value <= limit


def claims_table(claims: Sequence[Claim]) -> str:
    """Markdown."""
    return "\n".join([TABLE_HEAD, *(claim.row() for claim in claims)])


def cpu_seconds(run: Callable[[], Any]) -> float:
    """CPU time of this process while `run` runs."""
    start = time.process_time()
    run()
    return time.process_time() - start


@dataclass(frozen=True, kw_only=True)
class Runs:
    """Times and memory of the counted runs of one way."""

    seconds: np.ndarray  # (rounds,) CPU time of this process
    peak_bytes: float | None  # see `peak_growth`; the largest

    @property
    def median(self) -> float:
        """Seconds."""
        return float(np.median(self.seconds))

    def times_faster(self, slow: Runs) -> float:
        """The median over the rounds of the ratio of `slow`'s seconds to ours."""
        return float(np.median(slow.seconds / self.seconds))

    def to_dict(self) -> dict[str, Any]:
        return {
            "median_seconds": self.median,
            "seconds": self.seconds.tolist(),
            "peak_bytes": self.peak_bytes,
        }


def take_turns(
    ways: Mapping[str, Callable[[], Any]], rounds: int, *, warm_up: int = 1, memory: bool = True
) -> dict[str, Runs]:
    """Runs every way `rounds` times after `warm_up` uncounted rounds; the order rotates from round to round.

    Args:
        memory: measure peaks too, for which freed memory is released before each run.
    """
    names = list(ways)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    peaks: dict[str, list[float | None]] = {name: [] for name in names}
    for turn in range(-warm_up, rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            took: list[float] = []

            def timed(run: Callable[[], Any] = ways[name], took: list[float] = took) -> None:
                took.append(cpu_seconds(run))

            peak = peak_growth(timed) if memory else timed()
            if turn >= 0:
                seconds[name] += took
                peaks[name].append(peak)
    return {
        name: Runs(
            seconds=np.array(seconds[name]),
            peak_bytes=max((peak for peak in peaks[name] if peak is not None), default=None),
        )
        for name in names
    }


def peak_growth(run: Callable[[], Any]) -> float | None:
    """Peak growth of this process's resident memory during `run`, in bytes; None where the system does not report it.

    Freed memory that the allocator holds is released first; its reuse would go unnoticed.
    """
    if not RESET.is_file():
        run()
        return None
    ctypes.CDLL(None).malloc_trim(0)
    RESET.write_text("5")  # resets the peak to the current resident size
    before = resident("VmRSS")
    run()
    return max(resident("VmHWM") - before, 0)


def resident(field: str) -> int:
    """A field of /proc/self/status, in bytes."""
    found = re.search(rf"{field}:\s+(\d+) kB", STATUS.read_text())
    assert found, f"{STATUS} has no {field}"
    return int(found[1]) * 1024


def write_results(
    out: str | Path, settings: Mapping[str, Any], claims: Sequence[Claim], **numbers: object
) -> None:
    """The JSON file of a benchmark; `python -m benchmarks` reads the claims of all."""
    content = {
        "settings": {**settings, "torch": torch.__version__},
        "claims": [claim.to_dict() for claim in claims],
        **numbers,
    }
    write_json(out, content)


def write_json(out: str | Path, content: object) -> None:
    """A readable JSON file; its folder is created."""
    path = Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
