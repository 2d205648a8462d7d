"""What a training loop measures, over a step and over all processes."""

from __future__ import annotations

import math
import resource
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from utils.common.distributed import process_rank, sum_over_processes, world_size


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The same on every process."""

    means: dict[str, float]
    totals: dict[str, float]
    peaks: dict[str, float]


class Meters:
    """Weighted averages, totals and peaks of named numbers, since the last `reset` and over all processes.

    Tensors are summed where they are, so that adding a loss does not wait for the GPU; only `summary` does.

    Args:
        means, totals, peaks: the names, which every process gives in the same order.
    """

    def __init__(
        self, *, means: Sequence[str] = (), totals: Sequence[str] = (), peaks: Sequence[str] = ()
    ) -> None:
        self._names = (tuple(means), tuple(totals), tuple(peaks))
        self.reset()

    def reset(self) -> None:
        """Forget all that was measured."""
        means, totals, peaks = self._names
        self._sums: dict[str, Tensor | float] = dict.fromkeys(means, 0.0)
        self._weights = dict.fromkeys(means, 0.0)
        self._totals = dict.fromkeys(totals, 0.0)
        self._peaks = dict.fromkeys(peaks, -math.inf)

    def add(self, values: Mapping[str, Tensor | float], weight: float = 1.0) -> None:
        """Add one observation of each value; `weight` is, for instance, a number of samples."""
        for name, value in values.items():
            value = value.detach().double() if isinstance(value, Tensor) else float(value)
            self._sums[name] = self._sums[name] + value * weight
            self._weights[name] += weight

    def count(self, values: Mapping[str, float]) -> None:
        """Add to totals."""
        for name, value in values.items():
            self._totals[name] += value

    def peak(self, values: Mapping[str, float]) -> None:
        """Remember the largest."""
        for name, value in values.items():
            self._peaks[name] = max(self._peaks[name], value)

    def summary(self) -> Summary:
        """What was measured; without means and peaks that no process observed. A collective call, the only one."""
        means, totals, peaks = self._names
        # Each process has a place of its own for a peak and zeros in the others', so that sums hold every peak:
        #   process 0   sums, weights, totals, (memory of 0, 0)
        #   process 1   sums, weights, totals, (0, memory of 1)
        before, behind = [0.0] * process_rank(), [0.0] * (world_size() - process_rank() - 1)
        places = [number for peak in self._peaks.values() for number in (*before, peak, *behind)]
        measured = (*self._sums.values(), *self._weights.values(), *self._totals.values(), *places)
        numbers = iter(sum_over_processes([float(number) for number in measured]))
        sums, weights = _named(means, numbers), _named(means, numbers)
        counted = _named(totals, numbers)
        largest = {name: max(islice(numbers, world_size())) for name in peaks}
        return Summary(
            means={name: sums[name] / weights[name] for name in means if weights[name]},
            totals=counted,
            peaks={name: value for name, value in largest.items() if value > -math.inf},
        )


def _named(names: Sequence[str], numbers: Iterator[float]) -> dict[str, float]:
    """The next numbers, one for each name."""
    return dict(zip(names, islice(numbers, len(names)), strict=True))


def peak_memory(device: torch.device) -> int:
    """Peak memory of this process in bytes: of tensors on its GPU, or of everything where it trains on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
