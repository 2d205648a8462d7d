"""The device that is measured: clock, memory, and the two rates that everything else is compared with."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch

from benchmarks.models import build
from model.errors import UserError
from model.lasagna import LasagnaForConditionalGeneration

MATRIX_SIDE, TINY_MATRIX_SIDE = 8192, 256
COPY_BYTES, TINY_COPY_BYTES = 2**32, 2**22


@dataclass(kw_only=True, eq=False)
class Machine:
    """A CUDA GPU or, with `tiny`, a CPU that only shows that the parts run."""

    tiny: bool
    device: torch.device
    dtype: torch.dtype
    matrix_rate: float = field(default=float("nan"))  # FLOP/s of a large product in `dtype`

    @classmethod
    def found(cls, *, tiny: bool) -> Machine:
        """The first GPU; the CPU for `tiny`.

        Raises:
            UserError: there is no GPU.
        """
        if tiny:
            return cls(tiny=True, device=torch.device("cpu"), dtype=torch.float32)
        if not torch.cuda.is_available():
            raise UserError("no CUDA GPU is here; --tiny runs every part on a CPU")
        return cls(tiny=False, device=torch.device("cuda", 0), dtype=torch.bfloat16)

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def name(self) -> str:
        return torch.cuda.get_device_name(self.device) if self.on_gpu else "CPU"

    @cached_property
    def model(self) -> LasagnaForConditionalGeneration:
        """The 7B model in evaluation mode, made once; the toy one for `tiny`."""
        return build("tiny" if self.tiny else "7b", device=self.device, dtype=self.dtype)[0]

    def synchronize(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    def seconds(self, run: Callable[[], Any], rounds: int = 5, warm_up: int = 2) -> float:
        """Median wall-clock seconds of `run` until the device has finished it."""
        if self.tiny:
            rounds, warm_up = 1, 0
        taken = []
        for turn in range(warm_up + rounds):
            self.synchronize()
            start = time.perf_counter()
            run()
            self.synchronize()
            if turn >= warm_up:
                taken.append(time.perf_counter() - start)
        return float(np.median(taken))

    def peak_bytes(self, run: Callable[[], Any]) -> int:
        """Most bytes of tensors on the GPU while `run` runs, those that were there before included; 0 on a CPU."""
        if not self.on_gpu:
            run()
            return 0
        torch.cuda.reset_peak_memory_stats(self.device)
        run()
        return torch.cuda.max_memory_allocated(self.device)

    def free(self) -> None:
        """Give back what no tensor holds any more."""
        gc.collect()
        if self.on_gpu:
            torch.cuda.empty_cache()

    def measure_rates(self) -> tuple[float, float]:
        """FLOP/s of a large matrix product in `dtype`, and bytes/s of a copy (read and written bytes counted)."""
        side = TINY_MATRIX_SIDE if self.tiny else MATRIX_SIDE
        # Not zeros: matrix units run faster on them.
        a, b = (torch.randn(side, side, device=self.device, dtype=self.dtype) for _ in range(2))
        out = torch.empty_like(a)
        # An idle GPU's clock is low: half a second of work raises it.
        self.matrix_rate = 2 * side**3 / self.seconds(lambda: torch.mm(a, b, out=out), rounds=20, warm_up=400)
        source = torch.empty(
            TINY_COPY_BYTES if self.tiny else COPY_BYTES, dtype=torch.uint8, device=self.device
        )
        target = torch.empty_like(source)
        copy_rate = 2 * source.nbytes / self.seconds(lambda: target.copy_(source), rounds=10, warm_up=2)
        return self.matrix_rate, copy_rate
