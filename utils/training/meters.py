"""What a training loop measures, over a step and over all processes."""

from __future__ import annotations

import resource
import sys
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The same on every process."""

    means: dict[str, float]
    totals: dict[str, float]
    peaks: dict[str, float]


class Meters:
    """Weighted averages, totals and peaks of named numbers, since the last `reset` and over all processes.

    Tensors are summed where they are, so that adding a loss does not wait for the GPU; only `summary` does.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor | float] = {}
        self._weights: dict[str, float] = {}
        self._totals: dict[str, float] = {}
        self._peaks: dict[str, float] = {}

    def add(self, values: Mapping[str, Tensor | float], weight: float = 1.0) -> None:
        """Add one observation of each value; `weight` is, for instance, a number of samples."""
        for name, value in values.items():
            value = value.detach().double() if isinstance(value, Tensor) else float(value)
            self._sums[name] = self._sums.get(name, 0.0) + value * weight
            self._weights[name] = self._weights.get(name, 0.0) + weight

    def count(self, values: Mapping[str, float]) -> None:
        """Add to totals."""
        for name, value in values.items():
            self._totals[name] = self._totals.get(name, 0.0) + value

    def peak(self, values: Mapping[str, float]) -> None:
        """Remember the largest."""
        for name, value in values.items():
            self._peaks[name] = max(self._peaks.get(name, value), value)

    def summary(self) -> Summary:
        """What was measured. A collective call when several processes run, the only one."""
        mine = (
            {name: float(value) for name, value in self._sums.items()},
            dict(self._weights),
            dict(self._totals),
            dict(self._peaks),
        )
        everyone = [mine]
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            # Objects, not tensors: a rank without masks may know no mask loss, so names differ.
            everyone = [mine] * dist.get_world_size()
            dist.all_gather_object(everyone, mine)
        sums, weights, totals, peaks = (_by_name(part) for part in zip(*everyone, strict=True))
        return Summary(
            means={name: sum(sums[name]) / sum(weights[name]) for name in sums if sum(weights[name])},
            totals={name: sum(values) for name, values in totals.items()},
            peaks={name: max(values) for name, values in peaks.items()},
        )

    def reset(self) -> None:
        for values in (self._sums, self._weights, self._totals, self._peaks):
            values.clear()


def peak_memory(device: torch.device) -> int:
    """Bytes that this process has held at the most: tensors on its GPU, or everything where it trains on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _by_name(parts: tuple[dict[str, float], ...]) -> dict[str, list[float]]:
    """The values that the processes have for a name, in the order of names, so that sums are the same everywhere."""
    names = sorted({name for part in parts for name in part})
    return {name: [part[name] for part in parts if name in part] for name in names}
