"""The training loop: optimizer steps, and after each epoch a checkpoint and a validation."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from dataclasses import fields

import torch
from torch.profiler import record_function
from torch.utils.data import DataLoader

from model.losses import Losses
from utils.common.distributed import is_main_process, seed_of_micro_batch, world_size
from utils.common.memory import give_back_memory
from utils.config.training import TrainConfig
from utils.costs.cost_model import COUNTED, CostModel
from utils.data.base import Dataset
from utils.data.collate import build_loader
from utils.data.mixture import Mixture
from utils.data.types import Batch
from utils.training.checkpoint import save_best, save_checkpoint
from utils.training.engine import Engine
from utils.training.health import DivergedError, Watch
from utils.training.log import TrainLog, log_counts, log_step, open_log, say
from utils.training.meters import Meters, peak_memory
from utils.training.profile import StepProfiler
from utils.training.progress import Progress
from utils.training.records import SUMMARY_FILE
from utils.training.sam_cache import SamCache
from utils.training.saves import first_problem, from_main, keep_trying, write_patiently
from utils.training.signals import StopSignals
from utils.training.validation import validate_epoch
from utils.training.whole_model import WholeModel

PROFILE_FOLDER = "profile"
# Averages of a step's micro-batches: the losses, and how many items were unusable and samples shortened.
MEANS = (*(entry.name for entry in fields(Losses)), "skipped", "shortened")
COUNT_EVERY = 10  # steps between two counts of the unusable items of all processes


def train(
    engine: Engine,
    config: TrainConfig,
    mixture: Mixture,
    datasets: dict[str, Dataset],
    progress: Progress,
    sam_cache: SamCache | None,
    signals: StopSignals,
    whole: WholeModel | None = None,
) -> None:
    """Run the optimizer steps that are left; `progress` moves on with them. `whole`: see `validate_epoch`.

    Raises:
        DivergedError: the numbers are not finite any more.
        SystemExit: a signal asked to stop; the run was saved.
    """
    meters = Meters(means=MEANS, totals=COUNTED, peaks=("memory", "save", "stop", "gave_up"))
    costs = CostModel.of(config, engine.module.config, on_gpu=engine.device.type == "cuda")
    # Here and not in a step: an iterator that is made draws a number, which the dropout of its step would miss.
    loaded = iter(open_loader(mixture, engine, config, progress, sam_cache))
    batches = on_device(loaded, engine, sam_cache, meters, costs)
    watch, clock = Watch(engine), SaveClock(config)
    profiler = StepProfiler(config.profile if is_main_process() else 0, config.run_dir / PROFILE_FOLDER)
    with open_log(config, progress.step) as log, profiler, signals.deferred():
        if progress.owes_validation:
            # A validation that was interrupted: the weights of an epoch are saved before they are validated.
            with signals.deferred(False):
                validate_epoch(engine, config, datasets, progress, log, whole)
        while progress.step < config.num_steps:
            started = time.perf_counter()
            progress.step += 1
            train_step(engine, batches, config, progress, meters, watch)
            # Whether one process has to save or stop travels with what is measured: no collective of its own.
            meters.peak({"save": clock.is_due(progress.step), "stop": signals.received})
            meters.peak({"gave_up": log.gave_up})
            meters.peak({"memory": peak_memory(engine.device)})
            applied = engine.was_step_applied()
            summary = log_step(
                progress.step,
                log,
                meters,
                engine.get_lr()[0],
                started,
                applied=applied,
                grad_norm=watch.grad_norm(),
            )
            watch.after_step(progress.step, progress.bad, config.max_bad_steps)
            profiler.step()
            stop = int(summary.peaks["stop"])
            progress.owes_save |= bool(summary.peaks["save"] or stop)
            if summary.peaks["gave_up"]:
                from_main(log.check)
            if save_if_due(engine, config, progress, signals, log):
                clock.saved()
                give_back_memory()
            if stop:
                say(stopped(stop, progress))
                signals.stop(stop)
            # After the save, so that nothing is lost if the validation fails.
            if progress.owes_validation and not progress.owes_save:
                with signals.deferred(False):
                    validate_epoch(engine, config, datasets, progress, log, whole)
        check_last_step(progress)
        if datasets and progress.validated.best_step is None:
            say("no validation came to a number: ckpt_best holds the last weights")
            save_best(engine, config, progress.step, None)
    write_patiently(config, lambda: progress.counts.save(config.run_dir / SUMMARY_FILE))
    if is_main_process() and config.profile:
        say(profiler.describe())
    say(progress.counts.describe())


def save_if_due(
    engine: Engine, config: TrainConfig, progress: Progress, signals: StopSignals, log: TrainLog
) -> bool:
    """Count the samples of a step, and save if it ends an epoch or a save is due; whether it was saved.

    While steps are skipped nothing is saved: the weights may be beyond help, and would replace good ones.
    """
    ends_epoch = progress.step % config.steps_per_epoch == 0
    progress.owes_validation |= ends_epoch
    progress.owes_save |= ends_epoch
    is_due = progress.owes_save and not progress.bad.in_row
    if is_due or ends_epoch or progress.step % COUNT_EVERY == 0:
        progress.counts.gather()
        log_counts(progress.step, log, progress.counts)
        progress.counts.check(config.max_bad_fraction)
    if is_due:
        signals.saving = True
        # First: a resumed run writes no line of the steps before its save.
        keep_trying(config, lambda: first_problem(log.try_to_write()))
        save_checkpoint(engine, config, progress)
        signals.saving = progress.owes_save = False
    return is_due


def stopped(number: int, progress: Progress) -> str:
    """What is said when a signal ends the run."""
    name = signal.Signals(number).name
    if progress.owes_save:
        return (
            f"{name}: stopped at step {progress.step}, where steps are being skipped; the last save is good"
        )
    return f"{name}: stopped at step {progress.step}, which is saved; the same command continues"


class SaveClock:
    """When a save is due between two epochs, by --save_every_minutes and --save_every_steps."""

    def __init__(self, config: TrainConfig) -> None:
        self._seconds = 60 * config.save_every_minutes if config.save_every_minutes else None
        self._steps = config.save_every_steps
        self.saved()

    def saved(self) -> None:
        """A save was made now."""
        self._since = time.monotonic()

    def is_due(self, step: int) -> bool:
        """Whether to save after this step; by time, the clock of the first process decides."""
        by_time = self._seconds and is_main_process() and time.monotonic() - self._since >= self._seconds
        return bool(by_time or (self._steps and step % self._steps == 0))


def check_last_step(progress: Progress) -> None:
    """DivergedError when the run ends with steps that were skipped: what it came to is not saved."""
    if progress.bad.in_row:
        raise DivergedError(
            f"the run ends at step {progress.step} with {progress.bad.in_row} skipped steps, whose loss or gradient "
            "was not finite; the last save is good. Lower --lr under another --exp_name, or mend the samples named "
            "above"
        )


def open_loader(
    mixture: Mixture, engine: Engine, config: TrainConfig, progress: Progress, sam_cache: SamCache | None
) -> DataLoader[Batch]:
    """The micro-batches of this process that are left."""
    steps_left = max(config.num_steps - progress.step, 0)
    if config.pack and not engine.module.can_pack_rows:
        why = "flash attention cannot mask within a row"
        if not engine.module.backbone.can_pack:
            why = "the recurrent layers of this base see all that is before them in a row"
        say(f"conversations are not packed: {why}")
    return build_loader(
        mixture,
        engine.module.processor,
        batch_size=config.batch_size,
        num_batches=steps_left * engine.gradient_accumulation_steps(),
        first_sample=progress.samples,
        rank=torch.distributed.get_rank(),
        world_size=world_size(),
        num_workers=config.workers,
        fast_resize=config.fast_resize,
        pack_rows=config.pack and engine.module.can_pack_rows,
        pin_memory=engine.device.type == "cuda",
        sam_cache=sam_cache,
        max_length=config.model_max_length,
        pad_to_multiple_of=config.pad_to_multiple_of,
    )


def on_device(
    loaded: Iterator[Batch], engine: Engine, sam_cache: SamCache | None, meters: Meters, costs: CostModel
) -> Iterator[Batch]:
    """The loader's batches on this process's device, FLOPs counted, SAM's embeddings completed from the cache."""
    while True:
        with record_function("loader"):
            batch = next(loaded, None)
        if batch is None:
            return
        meters.count(costs.of_batch(batch.inputs))
        batch = batch.to(engine.device)
        if sam_cache is not None:
            with record_function("sam encoder"):
                batch = sam_cache.complete(batch, engine.module.sam)
        yield batch


def train_step(
    engine: Engine,
    batches: Iterator[Batch],
    config: TrainConfig,
    progress: Progress,
    meters: Meters,
    watch: Watch,
) -> None:
    """One optimizer step; its losses go into the meters."""
    engine.train()
    accumulation = engine.gradient_accumulation_steps()
    for micro_batch in range(accumulation):
        batch = next(batches)
        torch.manual_seed(seed_of_micro_batch(config.seed, progress.step, micro_batch))  # dropout
        output = engine(**batch.inputs.fields())
        assert output.losses is not None, "a batch of training has labels"
        loss = watch.see(batch, output.loss)
        with record_function("backward"):
            engine.backward(loss)
        with record_function("optimizer"):
            if micro_batch == accumulation - 1:
                watch.before_step()
            engine.step()
        progress.counts.add(batch)
        meters.add(output.losses.values() | {"skipped": len(batch.skipped), "shortened": batch.num_shortened})
    progress.samples += config.batch_size * accumulation * world_size()
