"""Evaluations that were killed go on, and their reports are those of one that was not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.utils.evaluation.told_model import (
    FakeProcessor,
    ListDataset,
    Threads,
    ToldModel,
    numbers_of,
    referring_world,
    semantic_world,
)
from utils.evaluation.dataset_run import Outputs
from utils.evaluation.evaluate import evaluate_datasets
from utils.evaluation.prompting import EvaluationSettings
from utils.evaluation.resume import STATE_VERSION
from utils.reports.write import write_report


class Killed(Exception):
    pass


class DyingModel(ToldModel):
    """Is killed before its prediction number `lives` + 1."""

    def __init__(self, lives: int) -> None:
        super().__init__()
        self.lives = lives

    def segment_batch(self, images, classes, **options):
        if len(self.calls) >= self.lives:
            raise Killed
        return super().segment_batch(images, classes, **options)


def report_of(model, datasets, folder, *, resume=False, processor=None, predictions=None, **settings):
    outputs = Outputs(report_dir=folder, resume=resume, num_shown=2, predictions_dir=predictions)
    return evaluate_datasets(
        model,
        processor or FakeProcessor(),
        {entry: ListDataset(samples, has_no_target=False) for entry, samples in datasets.items()},
        EvaluationSettings(num_sheet_rows=2, **settings),
        outputs=outputs,
        show_progress=False,
    )


def files_of(report, folder) -> dict[str, bytes]:
    """Every file of the report as it would be written, but for the time it took."""
    results = tuple(replace(result, seconds=0.0) for result in report.results)
    write_report(replace(report, results=results), folder)
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def two_worlds(model) -> dict[str, list]:
    """Two data sets that the model knows, semantic and referring."""
    return {"ade20k": semantic_world(model, 9), "refcoco|unc|val": referring_world(model)}


@pytest.mark.parametrize(("lives", "batch_size", "left"), [(0, 1, 9), (4, 1, 5), (2, 4, 1), (9, 1, 0)])
def test_a_killed_evaluation_goes_on_and_its_report_is_the_same_to_the_last_bit(
    tmp_path, lives, batch_size, left
):
    whole = ToldModel()
    expected = files_of(
        report_of(whole, two_worlds(whole), tmp_path / "a", val_batch_size=batch_size), tmp_path / "x"
    )
    dying = DyingModel(lives)
    with pytest.raises(Killed):
        report_of(dying, two_worlds(dying) | {"cocostuff": semantic_world(dying, 1, seed=5)}, tmp_path / "b",
                  val_batch_size=batch_size)  # fmt: skip
    again = ToldModel()
    report = report_of(again, two_worlds(again), tmp_path / "b", resume=True, val_batch_size=batch_size)
    assert sum(call["images"] for call in again.calls if "classes" in call) == left
    assert files_of(report, tmp_path / "y") == expected
    assert "samples.html" in expected
    assert "confusion_ade20k.png" in expected


def test_a_line_that_the_kill_cut_off_is_predicted_again(tmp_path):
    model = ToldModel()
    worlds = {"ade20k": semantic_world(model, 5)}
    expected = numbers_of(report_of(model, worlds, tmp_path).results[0])
    [shard] = (tmp_path / "finished").iterdir()
    content = shard.read_bytes()
    for cut in (len(content) - 1, len(content) - 40, content.index(b"\n") // 2, 0):
        shard.write_bytes(content[:cut])
        model.calls.clear()
        resumed = report_of(model, worlds, tmp_path, resume=True)
        assert numbers_of(resumed.results[0]) == expected
        assert len(model.calls) == (5 if cut < content.index(b"\n") else 1)
        assert len(shard.read_bytes()) == len(content)


def test_another_number_of_processes_goes_on_as_well(tmp_path, monkeypatch):
    whole = ToldModel()
    expected = numbers_of(report_of(whole, {"ade20k": semantic_world(whole, 9)}, tmp_path / "a").results[0])
    dying = DyingModel(4)
    with pytest.raises(Killed):
        report_of(dying, {"ade20k": semantic_world(dying, 9)}, tmp_path / "b")
    models = [ToldModel(), ToldModel()]
    worlds = [{"ade20k": semantic_world(model, 9)} for model in models]
    both = Threads(monkeypatch, 2).run(
        lambda rank: report_of(models[rank], worlds[rank], tmp_path / "b", resume=True)
    )
    assert [len(model.calls) for model in models] == [3, 2]
    assert [numbers_of(report.results[0]) for report in both] == [expected, expected]
    assert sorted(path.name for path in (tmp_path / "b" / "finished").iterdir()) == [
        "ade20k.0.jsonl",
        "ade20k.1.jsonl",
    ]


def test_without_resume_an_evaluation_starts_anew_and_says_what_it_leaves(tmp_path, caplog):
    dying = DyingModel(2)
    with pytest.raises(Killed):
        report_of(dying, {"ade20k": semantic_world(dying, 3)}, tmp_path)
    model = ToldModel()
    report = report_of(model, {"ade20k": semantic_world(model, 3)}, tmp_path)
    assert len(model.calls) == 3
    assert "with --resume it would continue" in caplog.text
    write_report(report, tmp_path)
    caplog.clear()
    report_of(model, {"ade20k": semantic_world(model, 3)}, tmp_path)
    assert not caplog.text  # a finished one is not worth a word


def test_samples_of_another_model_protocol_or_data_set_are_refused_before_anything_is_predicted(tmp_path):
    model = ToldModel()
    worlds = two_worlds(model)
    report_of(model, worlds, tmp_path, seed=3)
    model.calls.clear()
    other = ToldModel()
    torch.nn.init.ones_(other.weight)
    refused = [
        (other, worlds, {"seed": 3}, "another model"),
        (model, worlds, {"seed": 4}, "seed was 3, is 4"),
        (model, worlds, {"seed": 3, "presence_threshold": 0.5}, "presence_threshold was None, is 0.5"),
        (other, worlds, {"seed": 3, "encoder_precision": "bf16"}, "encoder_precision was None, is 'bf16'"),
        (model, worlds, {"seed": 3, "teacher_forced": True}, "answers was 'generated', is 'teacher_forced'"),
        (model, worlds, {"seed": 3, "predictions": tmp_path / "p"}, "predictions was ''"),
        (model, {"ade20k": worlds["ade20k"][:4]}, {"seed": 3}, "num_items was 9, is 4"),
        # The order matters: the last is refused before the first is predicted.
        ({}, {"pas20": semantic_world(model, 2), "ade20k": worlds["ade20k"][:4]}, {"seed": 3}, "num_items"),
    ]
    for asked, sets, settings, message in refused:
        with pytest.raises(ValueError, match=message) as problem:
            report_of(asked or model, sets, tmp_path, resume=True, **settings)
        assert "leave out --resume" in str(problem.value)
    assert model.calls == other.calls == []


def test_files_of_another_version_or_damaged_ones_are_refused(tmp_path):
    model = ToldModel()
    worlds = {"ade20k": semantic_world(model, 3)}
    report_of(model, worlds, tmp_path)
    [shard] = (tmp_path / "finished").iterdir()
    lines = shard.read_text().splitlines(keepends=True)
    spoiled = {
        "version 99": [
            lines[0].replace(f'"state_version": {STATE_VERSION}', '"state_version": 99'),
            *lines[1:],
        ],
        r"version None": ["[]\n", *lines[1:]],
        r"line 3": [*lines[:2], lines[2][:50] + "\n", *lines[3:]],
        r"line 2.*SheetRow": [lines[0], lines[1].replace("SemanticRecord", "SheetRow"), *lines[2:]],
        r"line 4.*int32": [*lines[:3], lines[3].replace("<i4", "|O")],
    }
    for message, content in spoiled.items():
        shard.write_text("".join(content))
        with pytest.raises(ValueError, match=message.replace("int32", "object")):
            report_of(model, worlds, tmp_path, resume=True)
    shard.write_text("".join(lines))
    (tmp_path / "report.json").write_text('{"schema_version": 1}')
    with pytest.raises(ValueError, match=r"report\.json: schema_version is 1, this program reads 2"):
        report_of(model, worlds, tmp_path, resume=True)
