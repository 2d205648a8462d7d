"""Logs of a training run: progress bar, TensorBoard, losses.jsonl; and the score that decides which epoch is best.

losses.jsonl holds only what the seed determines, so that two runs can be compared; speed and memory go to the bar
and to TensorBoard.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from tqdm import tqdm

from model.errors import UserError
from utils.common.commands import one_line
from utils.common.distributed import is_main_process
from utils.config.training import TrainConfig
from utils.reports.report import Report, Result
from utils.training.checkpoint import forget_after
from utils.training.meters import Meters, Summary
from utils.training.progress import Score
from utils.training.records import LOSSES_FILE, Records

logger = logging.getLogger(__name__)

# The score of a data set: the first of these numbers that it has.
SCORES = (
    ("semantic", "miou"),
    ("referring", "ciou"),
    ("generalized", "ciou"),
    ("reasoning", "giou"),
    ("vqa", "exact_match"),
)
# Short names of the losses in the bar, which fits 80 columns with six-figure steps and hours left.
SHOWN = {"total": "loss", "cross_entropy": "ce", "mask_bce": "bce", "dice": "dice"}
BAR = "{n_fmt}/{total_fmt} <{remaining} {desc}"


@dataclass(frozen=True, kw_only=True)
class TrainLog:
    """Where a run is logged; on processes other than the first, `records` is None and the bar is silent."""

    bar: tqdm
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
    writes = is_main_process()
    bar = tqdm(total=config.num_steps, initial=start, bar_format=BAR, disable=not writes)
    records = None
    if writes:
        forget_after(config.run_dir / LOSSES_FILE, start)
        records = Records(config.run_dir, start, config.disk_patience)
    ended_well = False
    try:
        yield TrainLog(bar=bar, records=records)
        ended_well = True
    finally:
        bar.close()
        if records is not None:
            records.close(patiently=ended_well)


def log_step(
    step: int, log: TrainLog, meters: Meters, lr: float, started: float, *, applied: bool = True
) -> Summary:
    """Log, and return, what one step was like over all processes, and how fast it was.

    Args:
        started: its time.perf_counter().
        applied: whether it changed the weights; not when a loss or gradient was not finite.
    """
    summary = meters.summary()  # waits for the GPU, so that the time is that of the work
    seconds = time.perf_counter() - started
    meters.reset()
    log.bar.update()
    if log.records is None:
        return summary
    losses, speed = {**dict(sorted(summary.means.items())), "lr": lr}, speed_of(summary, seconds)
    log.bar.set_description_str(bar_text(losses, speed), refresh=False)
    values = [
        (f"{group}/{name}", value, step)
        for group, numbers in (("train", losses), ("speed", speed))
        for name, value in numbers.items()
        if math.isfinite(value)
    ]
    log.records.add(line_of(step, losses, applied), values)
    return summary


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


def bar_text(losses: dict[str, float], speed: dict[str, float]) -> str:
    """loss 1.23 ce 0.90 bce 0.23 dice 0.10 4.1 img/s 0.2 TF/s"""
    shown = [f"{short} {losses[name]:.2f}" for name, short in SHOWN.items()]
    images, flops = speed["images_per_second"], speed["model_tflops_per_second"] * 1e12
    unit, letter = next(
        (unit, letter) for unit, letter in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (0, "M")) if flops >= unit
    )
    return " ".join([*shown, f"{rounded(images)} img/s", f"{rounded(flops / (unit or 1e6))} {letter}F/s"])


def rounded(value: float) -> str:
    """At least two significant digits, without needless decimals."""
    return f"{value:.1f}" if value < 10 else f"{value:.0f}"


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
    """Every number to TensorBoard, one of each data set to the terminal."""
    if report is None or log.records is None:
        return
    shown, values = [], []
    for result in report.results:
        for section, numbers in result.sections.items():
            for name, value in numbers.items():
                values.append((f"val/{result.dataset}/{section}/{name}", value, step))
        if score := score_of(result):
            shown.append(f"{result.dataset} {score[0]} {score[1]:.3f}")
    log.records.add(values=values)
    tqdm.write(f"step {step}: {', '.join(shown)}")


def say(text: str) -> None:
    """Print on the first process."""
    if is_main_process():
        print(text, flush=True)
