"""Averages of what a training loop measures."""

from __future__ import annotations

from collections.abc import Mapping

import torch.distributed as dist
from torch import Tensor


class Meters:
    """Weighted averages of named numbers, over the steps since the last `reset` and over all processes.

    Tensors are summed where they are, so that adding a loss does not wait for the GPU; only `means` does.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor | float] = {}
        self._weights: dict[str, float] = {}

    def add(self, values: Mapping[str, Tensor | float], weight: float = 1.0) -> None:
        """Add one observation of each value; `weight` is, for instance, a number of samples."""
        for name, value in values.items():
            value = value.detach().double() if isinstance(value, Tensor) else float(value)
            self._sums[name] = self._sums.get(name, 0.0) + value * weight
            self._weights[name] = self._weights.get(name, 0.0) + weight

    def means(self) -> dict[str, float]:
        """The averages, the same on every process. A collective call when several processes run."""
        sums = {name: float(value) for name, value in self._sums.items()}
        weights = dict(self._weights)
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            # Objects, not tensors: a rank without masks may know no mask loss, so names differ.
            everyone: list[tuple[dict, dict]] = [({}, {})] * dist.get_world_size()
            dist.all_gather_object(everyone, (sums, weights))
            names = sorted({name for known, _ in everyone for name in known})
            sums = {name: sum(known.get(name, 0.0) for known, _ in everyone) for name in names}
            weights = {name: sum(known.get(name, 0.0) for _, known in everyone) for name in names}
        return {name: sums[name] / weights[name] for name in sums if weights[name]}

    def reset(self) -> None:
        self._sums.clear()
        self._weights.clear()
