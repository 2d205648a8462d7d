"""What an evaluation leaves out stands in the report."""

from __future__ import annotations

import io
import json

from rich.console import Console

from tests.utils.data import layouts
from tests.utils.evaluation.test_evaluation_knowledge import (
    HEIGHT,
    WIDTH,
    box,
    columns,
    report_of,
    talk,
    write_coco,
)
from tests.utils.evaluation.told_model import image_of
from utils.data.registry import build_val_dataset
from utils.reports.tables import print_report
from utils.reports.write import write_report


def test_missing_images_stand_in_every_report(tmp_path):
    path = write_coco(tmp_path, [{}] * 10, [(number, 0, box(0, 5)) for number in range(10)])
    for number in range(2, 10):
        (tmp_path / f"{number}.png").unlink()
    report = report_of(f"own_coco:{path}|exhaustive=true", [columns((5, 0))] * 2)
    write_report(report, tmp_path / "out")
    data = json.loads((tmp_path / "out" / "report.json").read_text())["datasets"][0]["data"]
    assert data["summary"] == "2 of 10 images; 8 missing"
    assert (data["num_listed"], data["num_used"], data["left_out"]) == (10, 2, {"missing": 8})
    assert any("2.png" in example for example in data["examples"])
    assert (
        f"`own_coco:{path}|exhaustive=true`: 2 of 10 images; 8 missing"
        in (tmp_path / "out" / "report.md").read_text()
    )
    shown = io.StringIO()
    print_report(report, console=Console(file=shown, width=200))
    assert "2 of 10 images; 8 missing" in " ".join(shown.getvalue().split())


def test_nothing_is_remarked_where_all_is_judged_but_the_report_says_so(tmp_path):
    path = write_coco(tmp_path, [{}], [(0, 0, box(0, 5))])
    report = report_of(f"own_coco:{path}|exhaustive=true", [columns((5, 0))])
    shown = io.StringIO()
    print_report(report, console=Console(file=shown, width=200))
    assert "images" not in shown.getvalue()
    write_report(report, tmp_path / "out")
    assert ": all 1 images" in (tmp_path / "out" / "report.md").read_text()


def test_a_part_of_the_samples_is_said_to_be_one(tmp_path):
    path = write_coco(tmp_path, [{}] * 4, [(number, 0, box(0, 5)) for number in range(4)])
    report = report_of(f"own_coco:{path}|exhaustive=true", [columns((5, 0))] * 4, max_samples=3)
    shown = io.StringIO()
    print_report(report, console=Console(file=shown, width=200))
    assert "3 of 4 samples evaluated (max_samples)" in " ".join(shown.getvalue().split())


def test_every_kind_of_data_counts_what_it_leaves_out(tmp_path):
    layouts.write_ade20k(tmp_path, [layouts.blocks([1, 2])] * 3, "validation")
    images = sorted((tmp_path / "ade20k/images/validation").iterdir())
    images[0].unlink()
    (tmp_path / "ade20k/annotations/validation" / f"{images[1].stem}.png").unlink()
    layouts.write_cityscapes(tmp_path, [layouts.blocks([7, 8])] * 2, "val")
    next((tmp_path / "cityscapes/leftImg8bit/val/ulm").glob("*000001*")).unlink()
    lines = [talk("a.png", "It is [SEG].", [box(0, 5)]), talk("gone.png", "[NEG]"), talk("a.png", "A crack.")]
    layouts.save(tmp_path / "a.png", image_of(0, HEIGHT, WIDTH))
    (tmp_path / "val.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    expected = {
        "ade20k": "1 of 3 images; 1 missing, 1 without annotation",
        "cityscapes": "1 of 2 images; 1 missing",
        f"own_jsonl:{tmp_path}": "1 of 3 lines; 1 for training only, 1 missing",
    }
    for entry, summary in expected.items():
        assert str(build_val_dataset(entry, tmp_path).coverage) == summary, entry
