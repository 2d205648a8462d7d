"""What one optimizer step sees, on whatever number of processes a run goes on."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from utils.config.training import TrainConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class StepSize:
    """An optimizer step: `micro_batches` of `batch_size` images, divided among the processes."""

    batch_size: int
    accumulation: int  # --grad_accumulation_steps as given, which the run may have divided otherwise
    num_processes: int
    micro_batches: int  # of all processes

    @classmethod
    def of(cls, config: TrainConfig, num_processes: int, accumulation: int) -> StepSize:
        """The step of so many processes that accumulate so many micro-batches each."""
        return cls(
            batch_size=config.batch_size,
            accumulation=config.grad_accumulation_steps,
            num_processes=num_processes,
            micro_batches=accumulation * num_processes,
        )

    @property
    def images(self) -> int:
        """Images of a step, of all processes."""
        return self.batch_size * self.micro_batches


def accumulation_of(config: TrainConfig, num_processes: int, before: StepSize | None) -> int:
    """The micro-batches of each process in an optimizer step; says what is different from before.

    The same command on another number of processes keeps the step: its micro-batches are divided among those that are
    there. One process that accumulates 10 becomes two that accumulate 5. Where they cannot be divided, or where
    --batch_size or --grad_accumulation_steps is given another value, the step is what the settings say.

    Args:
        before: what a step of the run was; None for a new run.
    """
    given = config.grad_accumulation_steps
    if before is None:
        return given
    is_same_command = (config.batch_size, given) == (before.batch_size, before.accumulation)
    if is_same_command and before.micro_batches % num_processes == 0:
        given = before.micro_batches // num_processes
    if text := describe_change(before, StepSize.of(config, num_processes, given), given):
        logger.warning("%s", text)
    return given


def describe_change(before: StepSize, now: StepSize, accumulation: int) -> str:
    """What another number of processes or another step means; "" if nothing is different."""
    processes = f"{now.num_processes} processes, {before.num_processes} before"
    division = f"{accumulation} micro-batches of {now.batch_size} images in each process"
    if now.batch_size == before.batch_size and now.micro_batches == before.micro_batches:
        if now.num_processes == before.num_processes:
            return ""
        return (
            f"{processes}: a step stays {now.images} images, as {division}; the samples and, within rounding, the "
            "losses are those of the run as it was"
        )
    text = f"{processes}: a step is {now.images} images from here on, {before.images} before ({division}). "
    if now.images == before.images:
        return text + (
            "The samples go on in their order. Losses are averages over micro-batches, so other micro-batches weigh "
            "the samples otherwise"
        )
    return text + (
        f"The samples go on in their order after the last one used; each of the remaining steps sees "
        f"{now.images / before.images:.3g} times as many, so the run sees more or fewer in all. Learning rate, its "
        "schedule and the epochs count steps and stay as they are: --lr is not scaled. For the step as it was, "
        f"--batch_size times --grad_accumulation_steps times the processes must be {before.images}"
    )
