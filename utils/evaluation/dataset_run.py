"""The evaluation of one data set: the samples left to predict, their records, and the metrics."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from model.processor import LasagnaProcessor
from utils.common.terminal import printable
from utils.data.base import Dataset
from utils.data.types import EvalSample
from utils.evaluation.batches import in_batches, load, spread
from utils.evaluation.gather import gather, raise_everywhere, rank_and_world_size
from utils.evaluation.model import SegmentationModel
from utils.evaluation.prediction_files import PredictionWriter
from utils.evaluation.prompting import EvaluationSettings
from utils.evaluation.protocols import TaskProtocol, protocol_for
from utils.evaluation.resume import Outcome, RunIdentity, Shard, unfinished
from utils.reports.best_and_worst import Extremes, compress, decompress, worst_and_best
from utils.reports.report import Result
from utils.reports.sheet import SheetRow

NUM_SHOWN = 16  # best and worst samples of each data set in a report


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """The files of a running evaluation."""

    report_dir: Path | None = None  # finished samples are kept in it, so that --resume can continue
    resume: bool = False  # count the finished samples that are there
    predictions_dir: Path | None = None  # for label images and masks
    num_shown: int = 0  # best and worst samples that are kept with their images


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
        identity: RunIdentity,
    ) -> None:
        self.entry, self.dataset, self.settings = entry, dataset, settings
        self.chosen = spread(len(dataset), settings.max_samples)
        self.in_sheet = {
            self.chosen[position] for position in spread(len(self.chosen), settings.num_sheet_rows)
        }
        self.num_shown = outputs.num_shown
        self.rank, self.world_size = rank_and_world_size()
        folder = outputs.predictions_dir
        self.writer = PredictionWriter(folder, stem, dataset) if folder else None
        self.shard = Shard(outputs.report_dir, stem, self.rank, identity) if outputs.report_dir else None
        self.finished: dict[int, Outcome] = {}
        if self.shard and outputs.resume:
            found = self.shard.read()
            self.finished = {index: found[index] for index in self.chosen if index in found}
            self.shard.mend()

    def result(self, model: SegmentationModel, processor: LasagnaProcessor, *, show_progress: bool) -> Result:
        """Predict the unfinished samples of this process, gather all records, and compute the metrics."""
        started = time.perf_counter()
        # Processes on different machines need not see each other's files.
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
        protocol: TaskProtocol,
        model: SegmentationModel,
        processor: LasagnaProcessor,
        finished: Mapping[int, Outcome],
        *,
        show_progress: bool,
    ) -> Iterator[dict[int, Outcome]]:
        """The unfinished samples of this process, batch by batch; each batch is on disk before it is yielded."""
        todo = unfinished(in_batches(self.chosen, self.settings.val_batch_size), finished)
        mine = todo[self.rank :: self.world_size]
        extremes = Extremes(self.num_shown)
        for index, outcome in finished.items():
            extremes.enters(index, outcome.score)
        with tqdm(
            total=len(self.chosen),
            initial=len(self.chosen) - sum(map(len, todo)),
            desc=printable(self.entry),
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
        self, protocol: TaskProtocol, extremes: Extremes, index: int, sample: EvalSample, prediction: Any
    ) -> Outcome:
        """The outcome of a sample to store; its label image is written before it counts as finished."""
        answers = self.writer.add(sample, prediction) if self.writer else ()
        record = protocol.record(sample, prediction)
        row = protocol.row(sample, prediction) if self.num_shown or index in self.in_sheet else None
        if row is None:
            return Outcome(record=record, answers=answers)
        shown = extremes.enters(index, row.score) or index in self.in_sheet
        kept = compress(replace(row, source=sample.source)) if shown else None
        return Outcome(record=record, score=row.score, row=kept, answers=answers)

    def _count(self, protocol: TaskProtocol, outcomes: Mapping[int, Outcome], *, seconds: float) -> Result:
        """The metrics of the data set, from the records of all its samples in order."""
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
    """The rows of those samples that have one."""
    rows = (outcomes[index].row for index in indices)
    return tuple(decompress(row) for row in rows if row is not None)
