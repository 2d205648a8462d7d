"""The loop of an evaluation: processes, samples shown, limits, and what ends it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.utils.evaluation.test_evaluate import run
from tests.utils.evaluation.told_model import (
    FakeProcessor,
    ListDataset,
    Threads,
    ToldModel,
    numbers_of,
    semantic_world,
)
from utils.common.label_values import IGNORE, UNCLAIMED
from utils.evaluation.batches import spread
from utils.evaluation.dataset_run import Outputs
from utils.evaluation.evaluate import evaluate_datasets, evaluate_entries
from utils.evaluation.prompting import EvaluationSettings


@pytest.mark.parametrize(("batch_size", "shares"), [(1, [4, 3]), (2, [4, 3]), (4, [4, 3]), (7, [7, 0])])
def test_processes_count_an_odd_number_of_samples_once_and_report_the_same(
    datasets, monkeypatch, batch_size, shares
):
    models = [ToldModel(), ToldModel(), ToldModel()]
    for model in models:
        datasets["ade20k"] = semantic_world(model, 7)
    settings = {"num_sheet_rows": 3, "val_batch_size": batch_size}
    alone = run(models[2], "ade20k", **settings)
    batches = [call["images"] for call in models[2].calls]
    both = Threads(monkeypatch, 2).run(lambda rank: run(models[rank], "ade20k", **settings))
    assert [sum(call["images"] for call in model.calls) for model in models[:2]] == shares
    # The batches are those of one process, so what a batch's other images do to an image is the same.
    assert sorted(call["images"] for model in models[:2] for call in model.calls) == sorted(batches)
    for together in both:
        assert numbers_of(together) == numbers_of(alone)
        assert together.num_samples == 7
        for ours, theirs in zip(together.sheet, alone.sheet, strict=True):
            np.testing.assert_array_equal(ours.prediction, theirs.prediction)
            np.testing.assert_array_equal(ours.image, theirs.image)


def test_the_best_and_the_worst_samples_are_shown_in_order(datasets):
    model = ToldModel()
    samples = semantic_world(model, 6)
    shares = [0.5, 0.1, 0.9, 0.3, 1.0, 0.0]  # of the pixels that are right
    for share, sample in zip(shares, samples, strict=True):
        right = np.arange(sample.label.size).reshape(sample.label.shape) < share * sample.label.size
        model.label_maps[sample.image.tobytes()] = np.where(
            right & (sample.label != IGNORE), sample.label.astype(np.int32), UNCLAIMED
        )
    report = evaluate_datasets(
        model, FakeProcessor(), {"ade20k": ListDataset(samples)}, EvaluationSettings(), outputs=Outputs(num_shown=2),
        show_progress=False,
    )  # fmt: skip
    [result] = report.results
    assert [row.source for row in result.worst] == ["5", "1"]
    assert [row.source for row in result.best] == ["4", "2"]
    assert result.worst[0].score == 0.0
    assert result.best[0].score == 1.0


def test_max_samples_and_images_are_spread_over_the_data_set(datasets):
    assert spread(10, None) == list(range(10))
    assert spread(10, 4) == [0, 2, 5, 7]
    assert spread(3, 8) == [0, 1, 2]
    model = ToldModel()
    datasets["ade20k"] = semantic_world(model, 9)
    result = run(model, "ade20k", max_samples=4, num_sheet_rows=2)
    assert result.num_samples == 4
    assert len(result.sheet) == 2


def test_the_model_trains_on_after_an_evaluation(datasets):
    model = ToldModel()
    datasets["ade20k"] = semantic_world(model, 1)
    model.train()
    run(model, "ade20k")
    assert model.training
    assert torch.is_grad_enabled()


def test_a_data_set_that_is_not_there_is_said_before_anything_is_predicted(tmp_path):
    model = ToldModel()
    with pytest.raises(ValueError, match="unknown data set 'ade20j'"):
        evaluate_entries(model, FakeProcessor(), ["ade20j"], tmp_path, EvaluationSettings())
    with pytest.raises(FileNotFoundError, match="ade20k"):
        evaluate_entries(model, FakeProcessor(), ["ade20k"], tmp_path, EvaluationSettings())
    with pytest.raises(FileNotFoundError, match="--dataset_dir"):
        evaluate_entries(model, FakeProcessor(), ["ade20k"], tmp_path / "nowhere", EvaluationSettings())
    assert model.calls == []


@pytest.mark.parametrize(
    "wrong",
    [{"val_batch_size": 0}, {"classes_per_query": 0}, {"presence_threshold": 1.5}, {"max_samples": -1}],
)
def test_settings_without_meaning_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        EvaluationSettings(**wrong)


def test_what_fails_on_one_process_ends_the_evaluation_on_all_of_them(datasets, monkeypatch):
    models = [ToldModel(), ToldModel()]
    for model in models:
        datasets["ade20k"] = semantic_world(model, 4)
    models[1].label_maps.clear()  # the second process knows no image: KeyError

    def run_or_fail(rank: int) -> str:
        try:
            run(models[rank], "ade20k")
        except (KeyError, RuntimeError) as problem:
            return f"{type(problem).__name__}: {problem}"[:24]
        return "went on"

    told = Threads(monkeypatch, 2).run(run_or_fail)
    assert told[0].startswith("RuntimeError: process 1:")
    assert told[1].startswith("KeyError: ")
