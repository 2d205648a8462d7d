"""A profile of some training steps: where the time goes.

    python train_ds.py --config configs/toy.yaml --profile 2

runs/EXP/profile/trace.json is for chrome://tracing or ui.perfetto.dev, runs/EXP/profile/table.txt for reading.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from utils.common.commands import one_line
from utils.common.files import write_whole, written_aside

logger = logging.getLogger(__name__)

# The labels of `torch.profiler.record_function` in the training loop and in `forward`. What checkpointing
# recomputes counts as backward.
PARTS = (
    "loader",
    "clip",
    "sam encoder",
    "language model",
    "mask decoder",
    "losses",
    "backward",
    "optimizer",
)
TRACE_FILE, TABLE_FILE = "trace.json", "table.txt"
# Steps before the profile: the first allocates and tunes, in the second the profiler warms up.
SKIPPED, WARMUP = 1, 1
NUM_OPERATORS = 25


@dataclass(frozen=True, kw_only=True)
class PartTime:
    """Milliseconds of one part in the profiled steps."""

    name: str
    calls: int
    host: float
    device: float  # 0 without a GPU


class StepProfiler:
    """Profiles `num_steps` steps of a loop that calls `step` after each; 0: none.

    with StepProfiler(3, folder) as profiler:
        for batch in batches:
            ...
            profiler.step()
    """

    def __init__(self, num_steps: int, folder: Path) -> None:
        self.num_steps, self.folder = num_steps, folder
        self.written = False
        self._problem = ""
        self._profile: profile | None = None
        if num_steps:
            activities = [ProfilerActivity.CPU]
            if torch.cuda.is_available():
                activities.append(ProfilerActivity.CUDA)
            self._profile = profile(
                activities=activities,
                schedule=schedule(wait=SKIPPED, warmup=WARMUP, active=num_steps, repeat=1),
                on_trace_ready=self._write,
            )

    def __enter__(self) -> StepProfiler:
        if self._profile is not None:
            self._profile.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._profile is not None:
            self._profile.__exit__(kind, error, traceback)
            self._profile = None

    def step(self) -> None:
        """Mark the end of a step of the loop."""
        if self._profile is None:
            return
        self._profile.step()
        if self.written or self._problem:  # the profile is done; the loop goes on at full speed
            self.__exit__(None, None, None)

    def describe(self) -> str:
        """Where the profile was written, or why there is none."""
        if self.written:
            return f"profile: {self.folder / TABLE_FILE}, {self.folder / TRACE_FILE}"
        if self._problem:
            return f"no profile: {self._problem}"
        return f"no profile: it starts after step {SKIPPED + WARMUP}, and there were fewer steps"

    def _write(self, result: profile) -> None:
        try:
            self._write_files(result)
        except OSError as problem:  # days of training do not end for a profile
            self._problem = one_line(problem)
            logger.error("no profile: %s", self._problem)

    def _write_files(self, result: profile) -> None:
        with written_aside(self.folder / TRACE_FILE) as partial:
            result.export_chrome_trace(str(partial))
        averages = result.key_averages()
        on_gpu = torch.cuda.is_available()
        operators = averages.table(
            sort_by="self_device_time_total" if on_gpu else "self_cpu_time_total",
            row_limit=NUM_OPERATORS,
            max_name_column_width=60,
        )
        text = f"{parts_table(times_of_parts(averages))}\n\nOperators by their own time\n{operators}\n"
        write_whole(self.folder / TABLE_FILE, text)
        self.written = True


def times_of_parts(averages: torch.autograd.profiler_util.EventList) -> list[PartTime]:
    """The labelled parts that were run, in the order of PARTS."""
    found = {event.key: event for event in averages if event.key in PARTS and event.cpu_time_total}
    return [
        PartTime(
            name=name,
            calls=found[name].count,
            host=found[name].cpu_time_total / 1e3,
            device=found[name].device_time_total / 1e3,
        )
        for name in PARTS
        if name in found
    ]


def parts_table(times: list[PartTime]) -> str:
    """A row for each part; shares are of the GPU's time where there is one, else of the host's."""
    on_gpu = any(part.device for part in times)
    whole = sum(part.device if on_gpu else part.host for part in times)
    lines = [f"{'part':16}{'calls':>7}{'host ms':>12}{'GPU ms':>12}{'share':>8}"]
    for part in times:
        share = (part.device if on_gpu else part.host) / whole
        gpu = f"{part.device:.1f}" if on_gpu else "-"
        lines.append(f"{part.name:16}{part.calls:7}{part.host:12.1f}{gpu:>12}{share:8.1%}")
    return "\n".join(lines)
