"""`make ablation` in small: runs that continue, are compared and are told apart from those of other settings."""

from __future__ import annotations

import json
import math
import os

import pytest

from tests.commands import REPOSITORY, complaint, main_of
from utils.reports.report import Report, Result
from utils.reports.write import write_report
from utils.toy import ablation
from utils.toy.ablation_table import PRESENT_MIOU, results, results_table, value_of
from utils.toy.child_scripts import ChildScripts
from utils.toy.study import VARIANTS, Study

FEW = ("--num_images=4", "--num_val=2", "--max_samples=1", "--steps=1")
SHORT = "--batch_size 1 --lora_r 2"


@pytest.fixture
def in_this_process(monkeypatch):
    """Runs the scripts here instead of in processes of their own; gives the list of their command lines."""
    called = []

    def run(self, words, log):
        called.append(words)
        return main_of(words[0].removesuffix(".py"))(words[1:]) == 0

    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr(ChildScripts, "run", run)
    return called


def write_fake(study: Study, variant: str, seed: int, **metrics: float) -> None:
    sections = {
        "semantic": {"miou": metrics["miou"]},
        "presence": {"hallucinated_per_image": metrics["ghosts"]},
    }
    result = Result(dataset="ade20k", task="semantic", num_samples=1, sections=sections)
    report = Report(model="", protocol={}, results=(result,))
    write_report(report, study.folder(variant, seed) / "eval")


def test_every_flag_of_a_variant_is_one_of_training():
    from utils.common.command_line import parse_config
    from utils.config.training import TrainConfig

    for name, variant in VARIANTS.items():
        config = parse_config(TrainConfig, ["--config", str(REPOSITORY / "configs/toy.yaml"), *variant.flags])
        assert config.spatial_prompt == ("spatial" in name or name == "latent")


def test_a_run_trains_and_is_evaluated_once(in_this_process, tmp_path, capsys):
    arguments = [
        f"--out={tmp_path}",
        "--variants",
        "none",
        "latent",
        "--seeds",
        "0",
        *FEW,
        "--train_flags",
        SHORT,
    ]
    assert ablation.main(arguments) == 0
    assert [words[0] for words in in_this_process] == ["train_ds.py", "test_sem.py"] * 2
    content = json.loads((tmp_path / "ablation.json").read_text())
    assert [len(content["variants"][name]["semantic.miou"]) for name in ("none", "latent")] == [1, 1]
    assert "(5) none: without all three" in (tmp_path / "ablation.md").read_text()

    in_this_process.clear()
    capsys.readouterr()
    assert ablation.main(arguments) == 0
    assert not in_this_process
    table = [line for line in capsys.readouterr().out.splitlines() if str(tmp_path) not in line]
    assert max(map(len, table)) <= 80


def test_a_table_has_mean_and_sample_deviation_over_the_seeds(tmp_path):
    study = Study(tmp_path, steps=1)
    write_fake(study, "full", 0, miou=0.70, ghosts=0.5)
    write_fake(study, "full", 1, miou=0.74, ghosts=1.5)
    write_fake(study, "spatial", 1, miou=0.755, ghosts=0.25)
    table = results_table(results(study, ["full", "no_neg", "spatial"], [0, 1]))
    rows = {row[0]: row[1:] for row in table.rows}
    assert table.headings == ("", "(1)", "(3)", "(6)")
    assert rows["seeds"] == ("2", "0", "1")
    assert rows["mIoU"] == ("72.0 ± 2.8", "-", "75.5")  # sqrt((2^2 + 2^2) / 1) = 2.83
    assert rows["hallucinated classes per image"] == ("1.00 ± 0.71", "-", "0.25")
    assert rows["N-acc"] == ("-", "-", "-")


def test_the_miou_of_classes_shown_leaves_out_hallucinated_ones(tmp_path):
    classes = {
        "sky": {"iou": 0.9, "true_pixels": 10},
        "dog": {"iou": 0.5, "true_pixels": 4},
        "cat": {"iou": 0.0, "true_pixels": 0},
    }
    result = Result(
        dataset="ade20k",
        task="semantic",
        num_samples=1,
        sections={"semantic": {"miou": 1.4 / 3}},
        per_class=classes,
    )
    report = Report(model="", protocol={}, results=(result,))
    assert value_of(report, "semantic.miou") == pytest.approx(0.467, abs=1e-3)
    assert value_of(report, PRESENT_MIOU) == pytest.approx(0.7)
    assert math.isnan(value_of(Report(model="", protocol={}, results=()), PRESENT_MIOU))


def test_a_run_that_stops_does_not_stop_the_others(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ChildScripts, "run", lambda *_: False)
    assert ablation.main([f"--out={tmp_path}", "--variants", "full", "spatial", "--seeds", "3", *FEW]) == 1
    shown = capsys.readouterr().out
    assert "full, seed 3 stopped" in shown
    assert "spatial, seed 3 stopped" in shown
    assert "train_ds.py" in (tmp_path / "full" / "seed3" / "log.txt").read_text()


@pytest.mark.parametrize("signal", [KeyboardInterrupt, SystemExit])
def test_stopping_ends_the_run_that_trains_and_starts_no_other(tmp_path, monkeypatch, signal):
    """The second of three runs waits until it is told to end."""
    os.mkfifo(trains := tmp_path / "trains")
    waits = f"open({str(trains)!r}, 'w'); signal.sigwait([signal.SIGTERM]); print('saved')"
    scripts = {
        0: "pass",
        1: f"import signal; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM]); {waits}",
    }
    monkeypatch.setattr(Study, "commands", lambda self, variant, seed: [["-c", scripts[seed]]])
    study = Study(tmp_path, steps=1)

    def interrupt(*_):
        trains.read_text()  # returns once the script has opened it
        raise signal

    monkeypatch.setattr(ablation, "write_results", interrupt)
    with pytest.raises(signal):
        ablation.run_all(study, [("full", 0), ("full", 1), ("full", 2)], jobs=1)
    assert (tmp_path / "full" / "seed1" / "log.txt").read_text().endswith("saved\n")
    assert not (tmp_path / "full" / "seed2").exists()


def test_runs_of_other_settings_are_not_mixed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ChildScripts, "run", lambda *_: False)
    arguments = [f"--out={tmp_path}", "--variants", "full", "--seeds", "0", *FEW]
    assert ablation.main(arguments) == 1
    capsys.readouterr()
    assert ablation.main([*arguments[:-1], "--steps=2"]) == 2
    complaint(capsys, "'steps': 1", "'steps': 2", "another --out")


def test_numbers_that_make_no_sense_are_refused(tmp_path, capsys):
    assert ablation.main([f"--out={tmp_path}", "--jobs=0"]) == 2
    complaint(capsys, "--jobs must be at least 1")
