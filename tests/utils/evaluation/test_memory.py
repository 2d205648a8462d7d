"""Finished samples are on disk, not in memory."""

from __future__ import annotations

import gc
from collections import Counter

from tests.utils.evaluation.told_model import FakeProcessor, ListDataset, ToldModel, semantic_world
from utils.evaluation.dataset_run import Outputs
from utils.evaluation.evaluate import evaluate_datasets
from utils.evaluation.prompting import EvaluationSettings
from utils.evaluation.protocols import SemanticRecord
from utils.evaluation.resume import Outcome
from utils.reports.best_and_worst import CompressedRow
from utils.reports.drawing import LegendEntry


def test_the_memory_of_an_evaluation_does_not_grow_with_its_samples(tmp_path):
    """Of all samples before it, a sample finds nothing in memory but the images of the best and the worst."""
    kept: list[Counter[str]] = []
    kinds = (SemanticRecord, CompressedRow, Outcome, LegendEntry)
    of_others = {id(thing): thing for thing in gc.get_objects() if type(thing) in kinds}  # of other tests

    class Counting(ToldModel):
        def segment_batch(self, images, classes, **options):
            number = len(self.calls)
            if number in (20, 40, 59):
                self.count()
            return super().segment_batch(images, classes, **options)

        def count(self):
            gc.collect()
            mine = (
                thing for thing in gc.get_objects() if type(thing) in kinds and id(thing) not in of_others
            )
            kept.append(Counter(type(thing).__name__ for thing in mine))

    model = Counting()
    samples = semantic_world(model, 60)
    outputs = Outputs(report_dir=tmp_path, num_shown=2, predictions_dir=tmp_path)
    report = evaluate_datasets(
        model,
        FakeProcessor(),
        {"ade20k": ListDataset(samples)},
        EvaluationSettings(num_sheet_rows=2),
        outputs=outputs,
        show_progress=False,
    )
    assert report.results[0].num_samples == 60
    assert len(kept) == 3
    for counted in kept:
        assert counted["SemanticRecord"] <= 1  # of the sample before
        assert counted["Outcome"] <= 1
        assert counted["CompressedRow"] <= 2 * 2 + 2 + 1
    assert kept[-1]["LegendEntry"] <= kept[0]["LegendEntry"] + 8
