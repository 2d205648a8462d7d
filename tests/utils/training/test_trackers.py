"""Weights & Biases and Trackio, with fakes that record what they are told."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from model.errors import UserError
from utils.config.training import TrainConfig
from utils.training import trackers
from utils.training.records import Records
from utils.training.trackers import check_trackers, open_trackers, run_id


class Fake:
    """What both packages have in common."""

    def __init__(self, key: str | None = "secret") -> None:
        self.api = SimpleNamespace(api_key=key)
        self.started: list[dict] = []
        self.told: list[tuple[int, dict]] = []
        self.finished = 0
        self.broken = False

    def init(self, **options):
        self.started.append(options)
        return self

    def log(self, values, step):
        if self.broken:
            raise ConnectionError("no route\nto host")
        self.told.append((step, values))

    def finish(self):
        self.finished += 1

    @staticmethod
    def Settings(**values):
        return values

    @staticmethod
    def Image(array):
        return ("image", array.shape)


@pytest.fixture
def installed(monkeypatch):
    """Fakes of both packages."""
    fakes = {name: Fake() for name in trackers.PACKAGES}
    for name, fake in fakes.items():
        monkeypatch.setitem(sys.modules, name, fake)
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: fakes.get(name))
    monkeypatch.delenv("WANDB_MODE", raising=False)
    return fakes


def config(tmp_path, report_to: str) -> TrainConfig:
    return TrainConfig(version="a", log_base_dir=str(tmp_path), exp_name="run", report_to=report_to)


def test_a_package_that_is_missing_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    for name in trackers.PACKAGES:
        with pytest.raises(
            UserError, match=f"--report_to {name} needs the package {name}.*pip install {name}"
        ):
            check_trackers(config(tmp_path, f"tensorboard,{name}"))
    check_trackers(config(tmp_path, "tensorboard"))


def test_wandb_without_an_account_needs_offline_mode(installed, tmp_path, monkeypatch):
    check_trackers(config(tmp_path, "wandb"))
    installed["wandb"].api.api_key = None
    with pytest.raises(UserError, match=r"nobody is logged in.*WANDB_MODE=offline"):
        check_trackers(config(tmp_path, "wandb"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    check_trackers(config(tmp_path, "wandb"))


def test_all_trackers_get_the_same_values_and_images(installed, tmp_path):
    (tmp_path / "run").mkdir()
    found = open_trackers(config(tmp_path, "tensorboard, wandb,trackio"), told=0)
    log = Records(tmp_path / "run", 0, 5, trackers=found)
    log.add("{}", [("train/total", 0.5, 1), ("train/lr", 0.1, 1)])
    log.add(values=[("val/a", 0.25, 2)], images=[("val_samples/a/1", np.zeros((2, 3, 3), np.uint8), 2)])
    log.close(patiently=True)
    for fake in installed.values():
        assert fake.told == [
            (1, {"train/total": 0.5, "train/lr": 0.1}),
            (2, {"val/a": 0.25, "val_samples/a/1": ("image", (2, 3, 3))}),
        ]
        assert fake.finished == 1
        [options] = fake.started
        assert options["config"]["exp_name"] == "run"
        assert options["resume"] == "allow"


def test_a_run_that_goes_on_is_the_same_run_and_tells_no_step_twice(installed, tmp_path):
    (tmp_path / "run").mkdir()
    wandb = installed["wandb"]
    for told, steps in ((0, (1, 2, 3)), (3, (3, 4))):  # stopped after step 3, saved after step 2
        [run] = open_trackers(config(tmp_path, "wandb"), told)
        for step in steps:
            run.add([("train/total", step / 2, step)], [])
        run.close()
    assert [step for step, _ in wandb.told] == [1, 2, 3, 4]
    assert wandb.started[0]["id"] == wandb.started[1]["id"] == run_id(tmp_path / "run")
    (tmp_path / "other").mkdir()
    assert run_id(tmp_path / "other") != run_id(tmp_path / "run")


def test_a_tracker_that_fails_does_not_end_the_run(installed, tmp_path, caplog):
    (tmp_path / "run").mkdir()
    [run] = open_trackers(config(tmp_path, "trackio"), 0)
    installed["trackio"].broken = True
    for step in (1, 2):
        run.add([("train/total", 0.5, step)], [])
    run.close()
    assert caplog.text.count("trackio gets no more values of this run: no route to host") == 1
    assert not installed["trackio"].finished


def test_a_tracker_that_does_not_start_is_one_line(installed, tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    monkeypatch.setattr(installed["wandb"], "init", lambda **_: 1 / 0)
    with pytest.raises(UserError, match="--report_to wandb: division by zero; mend it, or leave it out"):
        open_trackers(config(tmp_path, "wandb"), 0)
