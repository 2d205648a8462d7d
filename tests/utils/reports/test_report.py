"""The files and tables of an evaluation."""

from __future__ import annotations

import base64
import csv
import io
import json
import math
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from utils.reports.confusion_plot import most_confused, shares_of
from utils.reports.report import SCHEMA_VERSION, Report, Result, read_report
from utils.reports.sheet import SheetRow, mask_row
from utils.reports.tables import (
    Target,
    classes_csv,
    from_text,
    print_report,
    results_table,
    targets_table,
    to_markdown,
)
from utils.reports.write import write_report


def semantic_result(miou: float, dataset: str = "ade20k") -> Result:
    return Result(
        dataset=dataset,
        task="semantic",
        num_samples=100,
        sections={
            "semantic": {
                "miou": miou,
                "mean_accuracy": 0.9,
                "pixel_accuracy": 0.95,
                "miou_low": round(miou - 0.02, 5),
                "miou_high": round(miou + 0.01, 5),
            },
            "presence": {"accuracy": 0.98, "precision": math.nan, "recall": 1.0},
        },
        per_class={
            "sky": {"iou": 0.99, "presence_ap": 1.0, "true_pixels": 12},
            "awning, sunshade | blind": {"iou": 0.5, "presence_ap": math.nan, "true_pixels": 3},
            "nowhere": {"iou": math.nan, "presence_ap": math.nan, "true_pixels": 0},
        },
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
    path = write_report(report, tmp_path / "new" / "folder")
    content = json.loads(path.read_text())
    assert content["schema_version"] == SCHEMA_VERSION
    assert content["semantic"] == {
        "dataset": "ade20k",
        "num_samples": 100,
        "miou": 0.81234,
        "mean_accuracy": 0.9,
        "pixel_accuracy": 0.95,
        "miou_low": 0.79234,
        "miou_high": 0.82234,
    }
    assert content["datasets"][0]["per_class"]["nowhere"]["iou"] is None
    assert content["presence"]["precision"] is None  # JSON has no NaN
    assert content["referring"]["ciou"] == 0.8
    assert content["minutes_train"] == 5.2
    assert content["baseline"]["semantic"]["miou"] == 0.01
    assert [entry["dataset"] for entry in content["datasets"]] == ["ade20k", "cocostuff", "refcoco|unc|val"]
    names = ["per_class_ade20k.csv", "per_class_cocostuff.csv", "report.json", "report.md"]
    assert sorted(file.name for file in path.parent.iterdir()) == names


def test_a_report_read_back_is_the_same(tmp_path):
    report = report_of().with_facts(minutes_train=5.2).with_baseline(report_of(0.01))
    write_report(report, tmp_path)
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
    with pytest.raises(ValueError, match=r"report\.json: schema_version is 99, this program reads 2"):
        read_report(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        "[1]",
        "null",
        "[" * 100_000,
        '{"schema_version": 2}',
        '{"schema_version": 2, "timings": 5, "datasets": [], "model": "m", "protocol": {}}',
        '{"schema_version": 2, "timings": {"seconds": {}}, "datasets": 7, "model": "m", "protocol": {}}',
        '{"schema_version": 2, "timings": {"seconds": {}}, "datasets": [{"x": 1}], "model": "m", "protocol": {}}',
    ],
)
def test_what_is_no_report_is_told_in_one_line(content, tmp_path):
    (tmp_path / "report.json").write_text(content)
    with pytest.raises(ValueError, match=r"report\.json (is no report|is not JSON|must hold a JSON object)"):
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
    assert ("semantic.miou", "ade20k", "100", "0.812", "0.79-0.82", "0.010") in rows
    assert ("semantic.mean_accuracy", "ade20k", "100", "0.900", "", "0.900") in rows
    assert ("semantic.miou", "cocostuff", "100", "0.100", "0.08-0.11", "-") in rows


def test_report_md_has_tables_whose_cells_are_not_broken_by_bars(tmp_path):
    report = report_of().with_facts(minutes_train=5.2)
    write_report(report, tmp_path, [Target(metric="semantic.miou", bar=0.6)], images=["sheet_ade20k.png"])
    text = (tmp_path / "report.md").read_text()
    assert r"| referring.ciou | refcoco\|unc\|val | 20 | 0.800 |  |" in text
    assert r"| awning, sunshade \| blind | 0.500 | - |" in text
    assert "| nowhere |" not in text
    assert "| data set | samples | mIoU | mAcc | aAcc |" in text
    assert "| ade20k | 100 | 81.2 (79.2-82.2) | 90.0 | 95.0 |" in text
    assert "| semantic.miou | 0.812 | >= 0.6 |  | yes |" in text
    assert "![sheet_ade20k](sheet_ade20k.png)" in text
    assert "- answers: generated" in text
    assert "- minutes_train: 5.2" in text
    for table in text.split("\n\n"):
        lines = [line.replace(r"\|", "") for line in table.splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in lines}) <= 1


def test_a_csv_has_every_number_of_every_class_and_nothing_where_nothing_was_counted(tmp_path):
    write_report(report_of(), tmp_path)
    with (tmp_path / "per_class_ade20k.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows == [
        {"class": "sky", "iou": "0.99", "presence_ap": "1.0", "true_pixels": "12"},
        {"class": "awning, sunshade | blind", "iou": "0.5", "presence_ap": "", "true_pixels": "3"},
        {"class": "nowhere", "iou": "", "presence_ap": "", "true_pixels": "0"},
    ]


def test_names_that_are_no_class_are_listed_apart_from_the_metrics(tmp_path):
    result = Result(
        dataset="ade20k",
        task="semantic",
        num_samples=3,
        sections={
            "free_names": {"exact": 7, "hallucination_rate": 0.25},
            "hallucinated_names": {"unicorn": 2},
        },
    )
    report = Report(model="m", protocol={}, results=(result,))
    assert [row[0] for row in results_table(report).rows] == [
        "free_names.exact",
        "free_names.hallucination_rate",
    ]
    text = to_markdown(report)
    assert "## Hallucinated names on `ade20k`\n\n- unicorn: 2" in text
    assert "| ade20k | 3 | 7 | 25.0 |" in text


def image_row(score: float, source: str, question: str = "the left one") -> SheetRow:
    image = np.full((20, 30, 3), round(255 * score), dtype=np.uint8)
    truth, predicted = np.zeros((20, 30), np.uint8), np.zeros((20, 30), np.uint8)
    truth[5:15], predicted[8:15] = 1, 1
    row = mask_row(image, truth, predicted, question=question, answer="It is [SEG].", iou=score)
    return replace(row, score=score, source=source)


def test_the_page_of_samples_is_whole_and_runs_nothing_whatever_names_hold(tmp_path):
    evil = '"><script>alert(1)</script>'
    result = Result(
        dataset=f"own_jsonl:{evil}",
        task="referring",
        num_samples=2,
        sections={"referring": {"giou": 0.5}},
        worst=(image_row(0.125, f"/data/{evil}.png", evil),),
        best=(image_row(0.875, "/data/good.png"),),
    )
    write_report(Report(model=evil, protocol={}, results=(result,)), tmp_path)
    page = (tmp_path / "samples.html").read_text()
    tags = PageTags()
    tags.feed(page)
    assert "script" not in tags.seen
    assert tags.seen.count("img") == 6
    assert all(source.startswith("data:image/jpeg;base64,") for source in tags.sources)
    with Image.open(io.BytesIO(base64.b64decode(tags.sources[1].split(",")[1]))) as truth:
        assert truth.size == (30, 20)
    for text in ("IoU 0.125", "IoU 0.875", "good.png", "&lt;script&gt;", "Worst 1", "Best 1"):
        assert text in page
    assert "http:" not in page
    assert "https:" not in page
    assert "](samples.html)" in (tmp_path / "report.md").read_text()


class PageTags(HTMLParser):
    """The tags of a page and where its images come from."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.sources: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        self.sources += [value for name, value in attrs if name == "src"]
        assert not any(name.startswith("on") for name, _ in attrs)


def test_the_confusion_of_a_semantic_data_set_is_an_image_in_the_report(tmp_path):
    counts = np.array([[8, 2, 0, 0], [0, 4, 0, 4], [0, 0, 0, 0], [0, 1, 0, 0]])
    result = replace(semantic_result(0.5), confusion=counts)
    write_report(Report(model="m", protocol={}, results=(result,)), tmp_path)
    with Image.open(tmp_path / "confusion_ade20k.png") as image:
        assert min(image.size) > 300
    assert "![confusion_ade20k](confusion_ade20k.png)" in (tmp_path / "report.md").read_text()


def test_the_cells_of_a_confusion_are_shares_of_the_true_class():
    counts = np.array([[8, 2, 0, 0], [0, 4, 0, 4], [0, 0, 0, 0], [0, 1, 0, 0]])
    assert most_confused(counts, most=10) == [0, 1]  # class 2 is nowhere
    shares, num_others = shares_of(counts, [0, 1])
    np.testing.assert_allclose(shares, [[0.8, 0.2, 0], [0, 0.5, 0.5]])
    assert num_others == 0
    assert most_confused(counts, most=1) == [1]  # 4 missed, 2 + 1 invented
    shares, num_others = shares_of(counts, [0])
    np.testing.assert_allclose(shares, [[0.8, 0.2, 0]])
    assert num_others == 1


FORMULAS = (
    "=1+1",
    "+1",
    "-1",
    "@SUM(A1)",
    "\t=1",
    "\r=1",
    "\n=1",
    "\uff1d1+1",
    "'quoted",
    "''",
    "=cmd|' /C calc'!A0",
)


@pytest.mark.parametrize("name", [*FORMULAS, "traffic light", "t-shirt", "it's", "a,b", 'a "b"', ""])
def test_no_cell_of_a_csv_is_a_formula_and_every_name_comes_back(name):
    table = classes_csv(
        Result(dataset="own", task="semantic", num_samples=1, sections={}, per_class={name: {"iou": -0.5}})
    )
    [_, [cell, value]] = csv.reader(io.StringIO(table, newline=""))
    assert not cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d"))
    assert from_text(cell) == name
    assert value == "-0.5"  # a number
    assert (cell == name) == (name not in FORMULAS)
