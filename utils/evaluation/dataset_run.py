"""The evaluation of one data set: the samples left to predict, their records, and the metrics."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

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
from utils.evaluation.spool import Kept, Spool
from utils.reports.best_and_worst import CompressedRow, Extremes, compress, decompress, worst_and_best
from utils.reports.report import Result
from utils.reports.sheet import SheetRow

NUM_SHOWN = 16  # best and worst samples of each data set in a report
ANSWERS_AT_ONCE = 256  # samples whose answers are in memory
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """The files of a running evaluation."""

    report_dir: Path | None = None  # finished samples are kept in it, so that --resume can continue
    resume: bool = False  # count the finished samples that are there
    predictions_dir: Path | None = None  # for label images and masks
    save_maps: bool = False  # also the similarity maps of a spatial prompt
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
        self.writer = PredictionWriter(folder, stem, dataset, maps=outputs.save_maps) if folder else None
        self.shard = Shard(outputs.report_dir, stem, self.rank, identity) if outputs.report_dir else None
        self.kept = Spool(folder=outputs.report_dir or folder)
        self.scores: dict[int, float] = {}
        self.rows: dict[int, CompressedRow] = {}  # of the samples that may be shown
        self.extremes = Extremes(self.num_shown)
        if self.shard and outputs.resume:
            chosen = set(self.chosen)
            for index, outcome in self.shard.read():
                if index in chosen:
                    self._keep(index, outcome)
            self.shard.mend()

    def result(self, model: SegmentationModel, processor: LasagnaProcessor, *, show_progress: bool) -> Result:
        """Predict the unfinished samples of this process, gather all records, and compute the metrics."""
        started = time.perf_counter()
        # Processes on different machines need not see each other's files.
        finished = gather(dict(self.scores), may_repeat=True)
        failure: Exception | None = None
        try:
            sample = self.dataset[self.chosen[0]]
            protocol = protocol_for(sample, self.settings, has_no_target=self.dataset.has_no_target)
            self._predict(protocol, model, processor, finished, show_progress=show_progress)
        except Exception as problem:  # told to the other processes, which would wait for this one
            failure = problem
        raise_everywhere(failure)
        try:
            return self._count(protocol, finished.keys(), seconds=time.perf_counter() - started)
        finally:
            self.close()

    def close(self) -> None:
        """Forget the samples."""
        self.kept.close()
        self.scores, self.rows = {}, {}

    def _predict(
        self,
        protocol: TaskProtocol,
        model: SegmentationModel,
        processor: LasagnaProcessor,
        finished: Mapping[int, float],
        *,
        show_progress: bool,
    ) -> None:
        """Predict the unfinished samples of this process, batch by batch; each batch is on disk before the next.

        finished: scores of the samples that an earlier process has predicted.
        """
        todo = unfinished(in_batches(self.chosen, self.settings.val_batch_size), finished)
        mine = todo[self.rank :: self.world_size]
        for index, score in finished.items():
            self.extremes.enters(index, score)
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
                    index: self._outcome(protocol, index, sample, prediction)
                    for index, sample, prediction in zip(batch, samples, predictions, strict=True)
                }
                if self.shard:
                    self.shard.append(new)
                for index, outcome in new.items():
                    self._keep(index, outcome)
                bar.update(min(len(batch) * self.world_size, bar.total - bar.n))

    def _keep(self, index: int, outcome: Outcome) -> None:
        """Keep what is needed at the end; of all images only those that may be shown."""
        self.kept[index] = Kept(record=outcome.record, answers=outcome.answers)
        self.scores[index] = outcome.score
        self.extremes.enters(index, outcome.score)
        if outcome.row is not None:
            self.rows[index] = outcome.row
            shown = self.extremes.indices | self.in_sheet
            self.rows = {index: row for index, row in self.rows.items() if index in shown}

    def _outcome(self, protocol: TaskProtocol, index: int, sample: EvalSample, prediction: Any) -> Outcome:
        """The outcome of a sample to store; its label image is written before it counts as finished."""
        answers = self.writer.add(sample, prediction) if self.writer else ()
        record = protocol.record(sample, prediction)
        row = protocol.row(sample, prediction) if self.num_shown or index in self.in_sheet else None
        if row is None:
            return Outcome(record=record, answers=answers)
        shown = self.extremes.enters(index, row.score) or index in self.in_sheet
        kept = compress(replace(row, source=sample.source)) if shown else None
        return Outcome(record=record, score=row.score, row=kept, answers=answers)

    def _count(self, protocol: TaskProtocol, finished: Collection[int], *, seconds: float) -> Result:
        """The metrics of the data set, from the records of all its samples in order. A collective call.

        finished: the samples that were not predicted now, which several processes may hold.
        """
        scores = self._gather(self.scores, finished)
        assert sorted(scores) == self.chosen, "a sample was not predicted"
        found = self._gather({index: self.kept[index].record for index in self.kept}, finished)
        records = [found[index] for index in self.chosen]
        if self.writer:
            self._write_answers(self.writer)
        worst, best = worst_and_best(scores, self.num_shown)
        shown = {*self.in_sheet, *worst, *best}
        rows = gather({index: row for index, row in self.rows.items() if index in shown}, may_repeat=True)
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
            sheet=rows_of(rows, sorted(self.in_sheet)),
            worst=rows_of(rows, worst),
            best=rows_of(rows, best),
        )

    def _gather(self, mine: Mapping[int, T], finished: Collection[int]) -> dict[int, T]:
        """What all processes hold of all samples; only those in `finished` may be held by several."""
        old = gather({index: value for index, value in mine.items() if index in finished}, may_repeat=True)
        return old | gather({index: value for index, value in mine.items() if index not in finished})

    def _write_answers(self, writer: PredictionWriter) -> None:
        """The JSON file of predictions, a block of samples in memory at a time. A collective call."""
        blocks = self._answers()
        failure: Exception | None = None
        try:
            if self.rank == 0:
                writer.finish(answer for block in blocks for answer in block)
        except Exception as problem:  # told to the other processes, which would wait for this one
            failure = problem
        for _ in blocks:  # on the other processes all of them, on the first what an error has left
            pass
        raise_everywhere(failure)

    def _answers(self) -> Iterator[list[Mapping[str, Any]]]:
        for block in in_batches(self.chosen, ANSWERS_AT_ONCE):
            mine = {index: self.kept[index].answers for index in block if index in self.kept}
            found = gather(mine, may_repeat=True)
            yield [answer for index in block for answer in found[index]]

    def _data(self) -> dict[str, Any]:
        """How much of the data the numbers are about, as in report.json."""
        coverage = self.dataset.coverage
        content = {**asdict(coverage), "examples": list(coverage.examples), "num_samples": len(self.dataset)}
        return {**content, "summary": str(coverage)}


def rows_of(rows: Mapping[int, CompressedRow], indices: Sequence[int]) -> tuple[SheetRow, ...]:
    """The rows of those samples that have one."""
    return tuple(decompress(rows[index]) for index in indices if index in rows)
