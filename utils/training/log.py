"""Logs of a training run: a line a step, trackers such as TensorBoard, losses.jsonl; which epoch is the best.

losses.jsonl holds only what the seed determines, so that two runs can be compared; speed, memory and gradient norm
go to the terminal and to the trackers.
"""

from __future__ import annotations

import json
import logging
import math
import textwrap
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from model.errors import UserError
from utils.common.commands import one_line
from utils.common.distributed import is_main_process
from utils.config.training import TrainConfig
from utils.data.counts import DataCounts
from utils.reports.report import Report, Result
from utils.training.checkpoint import forget_after
from utils.training.meters import Meters, Summary
from utils.training.progress import Score
from utils.training.records import LOSSES_FILE, Records, last_step
from utils.training.sample_images import sample_images
from utils.training.step_line import StepClock, step_line
from utils.training.trackers import open_trackers

logger = logging.getLogger(__name__)

# The score of a data set: the first of these numbers that it has.
SCORES = (
    ("semantic", "miou"),
    ("referring", "ciou"),
    ("generalized", "ciou"),
    ("reasoning", "giou"),
    ("vqa", "exact_match"),
)
WIDTH = 80


@dataclass(frozen=True, kw_only=True)
class TrainLog:
    """Where a run is logged; on processes other than the first, `records` is None and nothing is printed."""

    num_steps: int  # of the whole run
    clock: StepClock
    records: Records | None

    @property
    def gave_up(self) -> bool:
        """Whether the records could not be written for --disk_patience minutes."""
        return self.records is not None and self.records.gave_up

    def check(self) -> None:
        """UserError if so."""
        if self.records is not None:
            self.records.check()

    def try_to_write(self) -> str | None:
        """Write what waits in the records; what hinders it."""
        return self.records.write() if self.records is not None else None


@contextmanager
def open_log(config: TrainConfig, start: int) -> Iterator[TrainLog]:
    """The run's logs, without what an interrupted start wrote about the steps after `start`, which are run again."""
    records = None
    if is_main_process():
        told = last_step(config.run_dir / LOSSES_FILE)  # before they are forgotten
        forget_after(config.run_dir / LOSSES_FILE, start)
        trackers = open_trackers(config, told)
        records = Records(
            config.run_dir,
            start,
            config.disk_patience,
            has_board="tensorboard" in config.trackers,
            trackers=trackers,
        )
    ended_well = False
    try:
        yield TrainLog(num_steps=config.num_steps, clock=StepClock(), records=records)
        ended_well = True
    finally:
        if records is not None:
            records.close(patiently=ended_well)


def log_step(
    step: int,
    log: TrainLog,
    meters: Meters,
    lr: float,
    started: float,
    *,
    applied: bool = True,
    grad_norm: float | None = None,
) -> Summary:
    """Log, and return, what one step was like over all processes, and how fast it was.

    Args:
        started: its time.perf_counter().
        applied: whether it changed the weights; not when a loss or gradient was not finite.
        grad_norm: of all gradients, before they are clipped; None: unknown.
    """
    summary = meters.summary()  # waits for the GPU, so that the time is that of the work
    seconds = time.perf_counter() - started
    meters.reset()
    if log.records is None:
        return summary
    losses, speed = {**dict(sorted(summary.means.items())), "lr": lr}, speed_of(summary, seconds)
    left = log.clock.seconds_left(seconds, log.num_steps - step)
    say(step_line(step, log.num_steps, left, losses, speed, applied=applied))
    norm = {} if grad_norm is None else {"grad_norm": float(grad_norm)}
    values = [
        (f"{group}/{name}", value, step)
        for group, numbers in (("train", losses | norm), ("speed", speed))
        for name, value in numbers.items()
        if math.isfinite(value)
    ]
    log.records.add(line_of(step, losses, applied), values)
    return summary


def log_counts(step: int, log: TrainLog, counts: DataCounts) -> None:
    """How many samples of each data set the run has seen, to the trackers."""
    if log.records is not None:
        numbers = {**counts.datasets, "all": counts.samples, "unusable": counts.unusable}
        log.records.add(values=[(f"samples/{name}", number, step) for name, number in numbers.items()])


def line_of(step: int, losses: Mapping[str, float], applied: bool) -> str:
    """A step in losses.jsonl. JSON knows no NaN and no infinity: null stands for them."""
    values = {name: value if math.isfinite(value) else None for name, value in losses.items()}
    return json.dumps({"step": step, **values, **({} if applied else {"applied": False})}, allow_nan=False)


def speed_of(summary: Summary, seconds: float) -> dict[str, float]:
    """Rates over all processes, and the memory of the one that takes most."""
    return {
        "seconds_per_step": seconds,
        "images_per_second": summary.totals["images"] / seconds,
        "text_tokens_per_second": summary.totals["text_tokens"] / seconds,
        "model_tflops_per_second": summary.totals["model_flops"] / seconds / 1e12,
        "memory_gb": summary.peaks["memory"] / 1e9,
    }


def score_of(result: Result) -> tuple[str, float] | None:
    """The name and the value of a data set's number."""
    for section, metric in SCORES:
        if section in result.sections:
            return f"{section}.{metric}", float(result.sections[section][metric])
    return None


def deciding_score(report: Report | None) -> Score | None:
    """The number of the first data set: the weights with the highest are kept as the best."""
    score = score_of(report.results[0]) if report else None
    if report is None or score is None or math.isnan(score[1]):
        return None
    first, per_query = report.results[0], report.protocol.get("classes_per_query")
    measured = f"{score[0]} of {first.dataset}, {first.num_samples} samples, {per_query} classes per query"
    return Score(value=score[1], measured=measured)


def log_failed_validation(step: int, problem: Exception) -> None:
    """Log that a validation failed; with the traceback unless it is a user's error."""
    is_mistake = isinstance(problem, UserError | OSError)
    logger.error(
        "step %d: the validation failed, and training goes on: %s",
        step,
        one_line(problem) if is_mistake else f"{type(problem).__name__}: {problem}",
        exc_info=None if is_mistake else problem,
    )


def log_validation(step: int, report: Report | None, log: TrainLog) -> None:
    """Every number and some samples as images to the trackers, one number of each data set to the terminal."""
    if report is None or log.records is None:
        return
    shown, values = [], []
    for result in report.results:
        for section, numbers in result.sections.items():
            for name, value in numbers.items():
                values.append((f"val/{result.dataset}/{section}/{name}", value, step))
        if score := score_of(result):
            shown.append(f"{result.dataset} {score[0]} {score[1]:.3f}")
    log.records.add(values=values, images=[(tag, image, step) for tag, image in sample_images(report)])
    text = f"step {step}: {', '.join(shown)}"
    say(textwrap.fill(text, WIDTH, subsequent_indent="  ", break_on_hyphens=False))


def say(text: str) -> None:
    """Print on the first process. A terminal that is gone, or a log on a full disk, ends no training."""
    if is_main_process():
        with suppress(OSError):
            print(text, flush=True)
