"""`make demo` in small: every step with the real launcher, and a second call that repeats nothing."""

from __future__ import annotations

import json
import math
import subprocess

import pytest
from PIL import Image

import utils.toy.demo as demo
from model.checkpoints.load import load_model
from tests.commands import REPOSITORY
from utils.reports.report import Report, Result, read_report

FEW = ["--num_images=8", "--num_val=4", "--max_samples=2"]
SHORT = "--epochs 1 --steps_per_epoch 2 --batch_size 2 --num_threads 1 --max_val_samples 1 --val_dataset_list ade20k"


@pytest.mark.launcher
def test_the_demo_learns_merges_evaluates_chats_and_skips_what_is_done(
    workspace, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(REPOSITORY)
    out = tmp_path / "demo"
    arguments = ["--out", str(out), *FEW, "--train_flags", SHORT]
    assert demo.main(arguments) == 0
    assert len((out / "losses.jsonl").read_text().splitlines()) == 2
    report = json.loads((out / "report.json").read_text())
    values = {target.metric: read_report(out / "report.json").value(target.metric) for target in demo.TARGETS}
    assert not [metric for metric, value in values.items() if math.isnan(value)]
    assert report["minutes_train"] > 0
    assert report["baseline"]["semantic"]["num_samples"] == 2
    for image in ("sheet.png", "losses.png"):
        assert Image.open(out / image).width > 100
        assert image in (out / "report.md").read_text()
    answers = sorted(path.parent.name for path in out.glob("chat/*/*_overlay.png"))
    assert answers == ["1", "2", "3"]
    assert load_model(out / "lasagna-toy")[1].format.name == "paper"

    capsys.readouterr()
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("training was started again"))
    assert demo.main(arguments) == 0
    shown = capsys.readouterr().out
    assert "test_sem.py" not in shown
    assert "merge_lora" not in shown


def test_a_step_that_fails_ends_the_demo(capsys):
    with pytest.raises(SystemExit, match="the step above failed"):
        demo.run(lambda _: 2, "python train_ds.py", "--epochs", 1)
    assert "python train_ds.py --epochs 1" in capsys.readouterr().out


def test_training_that_stops_says_how_to_go_on(tmp_path, monkeypatch):
    failed = subprocess.CompletedProcess([], returncode=1)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    for seconds in (1, 2):
        with pytest.raises(SystemExit, match="run again to continue"):
            demo.train(tmp_path, tmp_path / "dataset", [])
        assert json.loads((tmp_path / "train_seconds.json").read_text()) >= 0, seconds
    assert not (tmp_path / "trained").exists()


@pytest.mark.parametrize(
    ("batch_size", "cores", "processes"), [(8, 1, 1), (8, 2, 2), (8, 3, 2), (8, 64, 4), (6, 4, 3), (1, 4, 1)]
)
def test_cores_share_the_samples_of_a_step(batch_size, cores, processes):
    assert demo.num_processes(batch_size, cores) == processes


def test_the_quick_demo_is_smaller_goes_elsewhere_and_says_so(tmp_path, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(demo, "show", lambda scale: asked.append(scale) or 0)
    assert demo.main([]) == demo.main(["--quick", "--train_flags", "--seed 1"]) == 0
    full, quick = asked
    assert (full.remark, full.max_samples, str(full.out)) == ("", None, "runs/demo")
    assert str(quick.out) == "runs/demo_quick"
    assert quick.num_images < full.num_images
    assert quick.train_flags[-2:] == ("--seed", "1")
    assert "weaker" in quick.remark


def test_the_report_of_a_quick_demo_says_so_and_is_held_to_no_bar(tmp_path, capsys):
    result = Result(dataset="ade20k", task="semantic", num_samples=1, sections={"semantic": {"miou": 0.1}})
    report = Report(model="m", protocol={}, results=(result,))
    (tmp_path / "train_seconds.json").write_text("60")
    (tmp_path / "losses.jsonl").write_text(
        '{"step": 1, "total": 1, "cross_entropy": 1, "mask_bce": 1, "dice": 1}\n'
    )
    (tmp_path / "eval").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "eval" / "sheet_ade20k.png")
    demo.publish(report, report, tmp_path, demo.QUICK.remark)
    assert "a fraction of the training" in " ".join(capsys.readouterr().out.split())
    page = (tmp_path / "report.md").read_text()
    assert demo.QUICK.remark.split(":")[0] in page
    assert "Targets" not in page
    assert json.loads((tmp_path / "report.json").read_text())["remark"] == demo.QUICK.remark


def test_each_step_says_what_it_is_for(capsys):
    for step in demo.STEPS:
        demo.announce(step)
    out = " ".join(capsys.readouterr().out.split())
    assert f"2/{len(demo.STEPS)} Train." in out
    assert "[SEG] or [NEG]" in out
