"""Evaluation: data sets in, a Report out. Used by test_sem.py and by the validation of train_ds.py.

With several processes each sample is predicted by exactly one of them, also when their number does not divide
that of the samples, and every process gets the whole report. Samples are put into batches before the batches are
shared out, so that the report does not depend on the number of processes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader
from tqdm import tqdm

from model.errors import UserError
from utils.common.paths import file_stems
from utils.data.base import Dataset
from utils.data.val_datasets import open_datasets
from utils.evaluation.prediction_files import PredictionWriter
from utils.evaluation.prompting import EvaluationSettings
from utils.evaluation.protocols import Protocol, protocol_for
from utils.evaluation.resume import Key, Outcome, Shard, discard, fingerprint, has_samples, unfinished
from utils.reports.best_and_worst import Extremes, pack, unpack, worst_and_best
from utils.reports.report import REPORT_FILE, Report, Result, read_report
from utils.reports.visualize import SheetRow

logger = logging.getLogger(__name__)

NUM_SHOWN = 16  # best and worst samples of each data set in a report


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """What an evaluation leaves on disk while it runs."""

    report_dir: Path | None = None  # finished samples are kept below it, so that --resume can go on
    resume: bool = False  # count the finished samples that are there
    predictions_dir: Path | None = None  # of label pictures and masks
    num_shown: int = 0  # best and worst samples with pictures


def evaluate(
    model: Any,
    processor: Any,
    entries: Sequence[str],
    dataset_dir: str | Path,
    settings: EvaluationSettings,
    *,
    name: str = "",
    show_progress: bool = True,
) -> Report:
    """Evaluate a model on data sets as `--val_dataset_list` names them: ["ade20k", "refcoco|unc|val"].

    Raises ValueError or FileNotFoundError, before anything is predicted, when one is unknown or not there.
    """
    datasets = open_datasets(entries, dataset_dir)
    return evaluate_datasets(model, processor, datasets, settings, name=name, show_progress=show_progress)


def evaluate_datasets(
    model: Any,
    processor: Any,
    datasets: Mapping[str, Dataset],
    settings: EvaluationSettings,
    *,
    name: str = "",
    outputs: Outputs | None = None,
    show_progress: bool = True,
) -> Report:
    """Evaluate a model on opened data sets. A collective call when several processes run.

    Args:
        model: a LasagnaForConditionalGeneration, wherever it is; it is put into eval mode and back.
        processor: its LasagnaProcessor.
        name: what the report calls the model, its folder for instance.

    Raises:
        ValueError: finished samples to continue from belong to another model, protocol or version.
    """
    outputs, settings = outputs or Outputs(), settings.for_model(model)
    settings.constrains(
        processor.format
    )  # settings that this model cannot follow are found before the first image
    protocol = settings.protocol(constrained=processor.format.answers_every_class)
    check_calibration(datasets, settings)
    prepare(outputs)
    model_key = fingerprint(model) if outputs.report_dir else ""
    stems = file_stems(datasets)
    runs = []
    for entry, dataset in datasets.items():
        key = Key(
            model=model_key,
            entry=entry,
            num_items=len(dataset),
            protocol=protocol,
            predictions=str(outputs.predictions_dir or ""),
            num_shown=outputs.num_shown,
            num_pictures=settings.num_pictures,
        )
        runs.append(DatasetRun(entry, dataset, stems[entry], settings, outputs, key))
    with evaluation_mode(model):
        results = tuple(run.result(model, processor, show_progress=show_progress) for run in runs)
    return Report(model=name, protocol=protocol, results=results)


def check_calibration(datasets: Mapping[str, Dataset], settings: EvaluationSettings) -> None:
    """ValueError for a threshold that is to be found where no answer can be wrong by saying too much."""
    silent = [entry for entry, dataset in datasets.items() if not dataset.knows_absent]
    if settings.calibrate and silent:
        raise UserError(
            f"calibrate needs classes that are known to be absent, and {', '.join(silent)} states none; add "
            "exhaustive=true if every object is labelled, or leave calibrate out"
        )


def prepare(outputs: Outputs) -> None:
    """Check what is to be continued, or make room for a new start. A collective call."""
    if outputs.report_dir is None:
        return
    report_file = outputs.report_dir / REPORT_FILE
    if outputs.resume and report_file.is_file():
        read_report(report_file)  # a report of another schema is not continued
    if not outputs.resume and rank_and_world_size()[0] == 0:
        if has_samples(outputs.report_dir) and not report_file.is_file():
            logger.warning(
                "%s holds an unfinished evaluation; it starts anew, with --resume it would go on",
                outputs.report_dir,
            )
        discard(outputs.report_dir)
    wait_for_all()


class DatasetRun:
    """The evaluation of one data set on this process.

    Made for all data sets before the first is predicted, so that finished samples that do not fit are found early.
    """

    def __init__(
        self,
        entry: str,
        dataset: Dataset,
        stem: str,
        settings: EvaluationSettings,
        outputs: Outputs,
        key: Key,
    ) -> None:
        self.entry, self.dataset, self.settings = entry, dataset, settings
        self.chosen = spread(len(dataset), settings.max_samples)
        self.in_sheet = {
            self.chosen[position] for position in spread(len(self.chosen), settings.num_pictures)
        }
        self.num_shown = outputs.num_shown
        self.rank, self.world_size = rank_and_world_size()
        folder = outputs.predictions_dir
        self.writer = PredictionWriter(folder, stem, dataset) if folder else None
        self.shard = Shard(outputs.report_dir, stem, self.rank, key) if outputs.report_dir else None
        self.finished: dict[int, Outcome] = {}
        if self.shard and outputs.resume:
            found = self.shard.read()
            self.finished = {index: found[index] for index in self.chosen if index in found}
            self.shard.mend()

    def result(self, model: Any, processor: Any, *, show_progress: bool) -> Result:
        """Predict this process's share of what is not finished, gather what all have, and count."""
        started = time.perf_counter()
        # Processes need not see each other's disks.
        outcomes = gather(self.finished, may_repeat=True)
        predicted: dict[int, Outcome] = {}
        failure: Exception | None = None
        try:
            sample = self.dataset[self.chosen[0]]
            protocol = protocol_for(sample, self.settings, has_no_target=self.dataset.has_no_target)
            for new in self._predict(protocol, model, processor, outcomes, show_progress=show_progress):
                predicted |= new
        except Exception as problem:  # told to the other processes, which would wait for this one
            failure = problem
        raise_everywhere(failure)
        outcomes |= gather(predicted)
        return self._count(protocol, outcomes, seconds=time.perf_counter() - started)

    def _predict(
        self,
        protocol: Protocol,
        model: Any,
        processor: Any,
        finished: Mapping[int, Outcome],
        *,
        show_progress: bool,
    ) -> Iterator[dict[int, Outcome]]:
        """This process's share of what is not finished, batch by batch; on disk before it is given."""
        todo = unfinished(in_batches(self.chosen, self.settings.val_batch_size), finished)
        mine = todo[self.rank :: self.world_size]
        extremes = Extremes(self.num_shown)
        for index, outcome in finished.items():
            extremes.enters(index, outcome.score)
        with tqdm(
            total=len(self.chosen),
            initial=len(self.chosen) - sum(map(len, todo)),
            desc=self.entry,
            unit="image",
            disable=not show_progress or self.rank > 0,
        ) as bar:
            for batch, samples in load(self.dataset, mine, self.settings.workers):
                predictions = protocol.predict(model, processor, samples)
                new = {
                    index: self._outcome(protocol, extremes, index, sample, prediction)
                    for index, sample, prediction in zip(batch, samples, predictions, strict=True)
                }
                if self.shard:
                    self.shard.append(new)
                yield new
                bar.update(min(len(batch) * self.world_size, bar.total - bar.n))

    def _outcome(
        self, protocol: Protocol, extremes: Extremes, index: int, sample: Any, prediction: Any
    ) -> Outcome:
        """What is kept of a sample; its label picture is written before it counts as finished."""
        answers = self.writer.add(sample, prediction) if self.writer else ()
        record = protocol.record(sample, prediction)
        row = protocol.picture(sample, prediction) if self.num_shown or index in self.in_sheet else None
        if row is None:
            return Outcome(record=record, answers=answers)
        shown = extremes.enters(index, row.score) or index in self.in_sheet
        picture = pack(replace(row, source=sample.source)) if shown else None
        return Outcome(record=record, score=row.score, picture=picture, answers=answers)

    def _count(self, protocol: Protocol, outcomes: Mapping[int, Outcome], *, seconds: float) -> Result:
        """The numbers of the data set, from the records of all its samples in their order."""
        assert sorted(outcomes) == self.chosen, "a sample was not predicted"
        in_order = [outcomes[index] for index in self.chosen]
        records = [outcome.record for outcome in in_order]
        if self.writer and self.rank == 0:
            self.writer.finish([answer for outcome in in_order for answer in outcome.answers])
        scores = {index: outcome.score for index, outcome in outcomes.items()}
        worst, best = worst_and_best(scores, self.num_shown)
        return Result(
            dataset=self.entry,
            task=protocol.task,
            num_samples=len(records),
            sections=protocol.sections(records),
            per_class=protocol.class_table(records),
            data=self._data(),
            notes=protocol.notes(records),
            seconds=seconds,
            confusion=protocol.confusion(records),
            sheet=rows_of(outcomes, sorted(self.in_sheet)),
            worst=rows_of(outcomes, worst),
            best=rows_of(outcomes, best),
        )

    def _data(self) -> dict[str, Any]:
        """How much of the data the numbers are about, as in report.json."""
        coverage = self.dataset.coverage
        content = {**asdict(coverage), "examples": list(coverage.examples), "num_samples": len(self.dataset)}
        return {**content, "summary": str(coverage)}


def rows_of(outcomes: Mapping[int, Outcome], indices: Sequence[int]) -> tuple[SheetRow, ...]:
    """The pictures of samples, of those that have one."""
    pictures = (outcomes[index].picture for index in indices)
    return tuple(unpack(picture) for picture in pictures if picture is not None)


def in_batches(indices: Sequence[int], batch_size: int) -> list[Sequence[int]]:
    return [indices[start : start + batch_size] for start in range(0, len(indices), batch_size)]


def load(
    dataset: Dataset, batches: Sequence[Sequence[int]], workers: int
) -> Iterator[tuple[Sequence[int], list[Any]]]:
    """The samples of each batch, read ahead by `workers` processes."""
    loader = DataLoader(dataset, batch_sampler=batches, num_workers=workers, collate_fn=list)
    yield from zip(batches, loader, strict=True)


def spread(length: int, most: int | None) -> list[int]:
    """At most `most` indices below `length`, evenly spread; all of them when `most` is None."""
    if most is None or most >= length:
        return list(range(length))
    return [position * length // most for position in range(most)]


@contextmanager
def evaluation_mode(model: torch.nn.Module) -> Iterator[None]:
    """No dropout, no gradients; afterwards the model is as it was.

    no_grad, not inference_mode: what the model computes once and keeps must stay usable for training.
    """
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def rank_and_world_size() -> tuple[int, int]:
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def wait_for_all() -> None:
    if rank_and_world_size()[1] > 1:
        dist.barrier()


def raise_everywhere(failure: Exception | None) -> None:
    """Raise on every process what went wrong on one of them. A collective call; None: nothing went wrong here."""
    _, world_size = rank_and_world_size()
    failures: list[tuple[bool, str] | None] = [None] * world_size
    if world_size > 1:
        mine = None if failure is None else (isinstance(failure, UserError), str(failure) or repr(failure))
        dist.all_gather_object(failures, mine)
    if failure is not None:
        raise failure
    for other, told in enumerate(failures):
        if told is not None:
            is_mistake, message = told
            raise UserError(message) if is_mistake else RuntimeError(f"process {other}: {message}")


def gather(mine: dict[int, Any], *, may_repeat: bool = False) -> dict[int, Any]:
    """What all processes have, on every one of them; may_repeat: several may have the same sample."""
    _, world_size = rank_and_world_size()
    if world_size == 1:
        return mine
    shares: list[dict[int, Any]] = [{} for _ in range(world_size)]
    dist.all_gather_object(shares, mine)
    everything: dict[int, Any] = {}
    for share in shares:
        assert may_repeat or not everything.keys() & share.keys(), "a sample was predicted by two processes"
        everything.update(share)
    return everything
