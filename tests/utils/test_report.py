"""The files and tables of an evaluation."""

from __future__ import annotations

import io
import json
import math

import pytest
from rich.console import Console

from utils.report import SCHEMA_VERSION, Report, Result, read_report
from utils.tables import Target, print_report, results_table, targets_table


def semantic_result(miou: float, dataset: str = "ade20k") -> Result:
    return Result(
        dataset=dataset,
        task="semantic",
        num_samples=100,
        sections={
            "semantic": {"miou": miou, "mean_accuracy": 0.9, "pixel_accuracy": 0.95},
            "presence": {"accuracy": 0.98, "precision": math.nan, "recall": 1.0},
        },
        per_class={"sky": 0.99, "awning, sunshade | blind": 0.5},
        seconds=12.34,
    )


def report_of(miou: float = 0.81234) -> Report:
    referring = Result(
        dataset="refcoco|unc|val",
        task="referring",
        num_samples=20,
        sections={"referring": {"giou": 0.7, "ciou": 0.8}},
    )
    return Report(
        model="runs/[demo]/model",
        protocol={"answers": "generated", "classes_per_query": None},
        results=(semantic_result(miou), semantic_result(0.1, "cocostuff"), referring),
    )


def test_report_json_has_a_section_for_each_task_and_a_schema_version(tmp_path):
    report = report_of().with_facts(minutes_train=5.2).with_baseline(report_of(0.01))
    path = report.save(tmp_path / "new" / "folder")
    content = json.loads(path.read_text())
    assert content["schema_version"] == SCHEMA_VERSION
    assert content["semantic"] == {
        "dataset": "ade20k",
        "num_samples": 100,
        "miou": 0.81234,
        "mean_accuracy": 0.9,
        "pixel_accuracy": 0.95,
    }
    assert content["presence"]["precision"] is None  # JSON has no NaN
    assert content["referring"]["ciou"] == 0.8
    assert content["minutes_train"] == 5.2
    assert content["baseline"]["semantic"]["miou"] == 0.01
    assert [entry["dataset"] for entry in content["datasets"]] == ["ade20k", "cocostuff", "refcoco|unc|val"]
    assert sorted(file.name for file in path.parent.iterdir()) == ["report.json", "report.md"]


def test_a_report_read_back_is_the_same(tmp_path):
    report = report_of().with_facts(minutes_train=5.2).with_baseline(report_of(0.01))
    report.save(tmp_path)
    again = read_report(tmp_path)
    assert again.to_dict() == report.to_dict()
    assert math.isnan(again.value("presence.precision"))
    assert read_report(tmp_path / "report.json").value("minutes_train") == 5.2


def test_values_are_found_by_the_names_in_report_json():
    report = report_of().with_facts(minutes_train=5.2).with_baseline(report_of(0.01))
    assert report.value("semantic.miou") == 0.81234
    assert report.value("baseline.semantic.miou") == 0.01
    assert report.value("minutes_train") == 5.2
    for unknown in ("semantic.nothing", "nothing.miou", "baseline.nothing.miou", "nothing"):
        assert math.isnan(report.value(unknown))


def test_another_schema_version_and_a_missing_file_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="--report_dir"):
        read_report(tmp_path)
    (tmp_path / "report.json").write_text('{"schema_version": 99}')
    with pytest.raises(ValueError, match=r"report\.json: schema_version is 99, this program reads 1"):
        read_report(tmp_path)


def test_a_fact_may_not_hide_a_part_of_the_schema():
    with pytest.raises(ValueError, match="semantic"):
        report_of().with_facts(semantic=1)


def test_targets_say_what_is_reached():
    report = report_of().with_facts(minutes_train=5.2)
    targets = [
        Target(metric="semantic.miou", bar=0.6, goal=0.8),
        Target(metric="minutes_train", bar=5, at_most=True),
        Target(metric="vqa.exact_match", bar=0.1),
    ]
    assert targets_table(report, targets).rows == [
        ("semantic.miou", "0.812", ">= 0.6", ">= 0.8", "yes"),
        ("minutes_train", "5.200", "<= 5", "", "no"),
        ("vqa.exact_match", "-", ">= 0.1", "", "no"),
    ]


@pytest.mark.parametrize("width", [80, 200])
def test_the_terminal_table_fits_80_columns_and_shows_names_as_they_are(width):
    report = report_of().with_baseline(report_of(0.01))
    stream = io.StringIO()
    targets = [Target(metric="baseline.semantic.miou", bar=0.05, at_most=True)]
    print_report(report, targets, Console(file=stream, width=width))
    text = stream.getvalue()
    assert max(len(line) for line in text.splitlines()) <= 80
    for expected in (
        "runs/[demo]/model",
        "semantic.miou",
        "refcoco|unc|val",
        "0.812",
        "0.010",
        "before",
        "<= 0.05",
    ):
        assert expected in text


def test_a_data_set_only_the_baseline_lacks_has_no_number_before():
    earlier = Report(model="base", protocol={}, results=(semantic_result(0.01),))
    rows = results_table(report_of().with_baseline(earlier)).rows
    assert ("semantic.miou", "ade20k", "100", "0.812", "0.010") in rows
    assert ("semantic.miou", "cocostuff", "100", "0.100", "-") in rows


def test_report_md_has_tables_whose_cells_are_not_broken_by_bars(tmp_path):
    report = report_of().with_facts(minutes_train=5.2)
    report.save(tmp_path, [Target(metric="semantic.miou", bar=0.6)], pictures=["sheet_ade20k.png"])
    text = (tmp_path / "report.md").read_text()
    assert r"| referring.ciou | refcoco\|unc\|val | 20 | 0.800 |" in text
    assert r"| awning, sunshade \| blind | 0.500 |" in text
    assert "| semantic.miou | 0.812 | >= 0.6 |  | yes |" in text
    assert "![sheet_ade20k](sheet_ade20k.png)" in text
    assert "- answers: generated" in text
    assert "- minutes_train: 5.2" in text
    columns = {line.replace(r"\|", "").count("|") for line in text.splitlines() if line.startswith("| ")}
    assert columns <= {3, 5, 6}
