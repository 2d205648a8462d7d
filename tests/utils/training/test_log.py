"""What a run tells: losses that can be compared, speed beside them, images of a validation."""

from __future__ import annotations

import errno
import json
import math
import time

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from utils.config.training import TrainConfig
from utils.costs.cost_model import COUNTED
from utils.reports.report import Report, Result
from utils.training.log import deciding_score, log_step, log_validation, open_log, speed_of
from utils.training.meters import Meters, Summary

LOSSES = {"total": 1.234, "cross_entropy": 0.9, "mask_bce": 0.234, "dice": 0.1}


def measured() -> Meters:
    meters = Meters(means=tuple(LOSSES), totals=COUNTED, peaks=("memory",))
    meters.add({name: torch.tensor(value) for name, value in LOSSES.items()})
    meters.count({"images": 6, "text_tokens": 300, "model_flops": 8e12})
    meters.peak({"memory": 3e9})
    return meters


def test_rates_are_totals_over_seconds():
    summary = Summary(
        means={}, totals={"images": 6, "text_tokens": 300, "model_flops": 8e12}, peaks={"memory": 3e9}
    )
    assert speed_of(summary, 2.0) == {
        "seconds_per_step": 2.0,
        "images_per_second": 3.0,
        "text_tokens_per_second": 150.0,
        "model_tflops_per_second": 4.0,
        "memory_gb": 3.0,
    }


def test_losses_go_to_the_file_and_speed_to_tensorboard_alone(tmp_path):
    config = TrainConfig(version="a", log_base_dir=str(tmp_path), exp_name="run", epochs=1, steps_per_epoch=2)
    config.run_dir.mkdir()
    meters = measured()
    with open_log(config, 0) as log:
        log_step(1, log, meters, 0.5, time.perf_counter(), grad_norm=2.0)
    assert meters.summary().means == {}
    [line] = (config.run_dir / "losses.jsonl").read_text().splitlines()
    assert json.loads(line) == pytest.approx({"step": 1, "lr": 0.5, **LOSSES}, rel=1e-6)
    board = EventAccumulator(str(config.run_dir)).Reload()
    assert {f"train/{name}" for name in (*LOSSES, "lr")} <= set(board.Tags()["scalars"])
    assert [point.value for point in board.Scalars("speed/memory_gb")] == [3.0]
    assert [point.value for point in board.Scalars("train/grad_norm")] == [2.0]
    assert board.Scalars("speed/images_per_second")[0].value > 0


def test_a_log_that_cannot_be_written_ends_no_training(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    config = TrainConfig(version="a", log_base_dir=str(tmp_path), exp_name="run", epochs=1, steps_per_epoch=2)
    config.run_dir.mkdir()
    monkeypatch.setattr("builtins.print", full)
    with open_log(config, 0) as log:
        log_step(1, log, measured(), 0.5, time.perf_counter())
    assert len((config.run_dir / "losses.jsonl").read_text().splitlines()) == 1


def result(name: str, **sections: dict[str, float]) -> Result:
    return Result(dataset=name, task="", num_samples=1, sections=sections)


def test_the_first_data_set_decides_which_weights_are_the_best():
    reasoning = result("ReasonSeg|val", reasoning={"giou": 0.25, "ciou": 0.9})
    semantic = result("ade20k", semantic={"miou": 0.5}, presence={"accuracy": 1.0})
    report = Report(model="", protocol={}, results=(reasoning, semantic))
    assert deciding_score(report).value == 0.25
    assert deciding_score(None) is None
    unknown = Report(model="", protocol={}, results=(result("ade20k", semantic={"miou": math.nan}),))
    assert deciding_score(unknown) is None


def test_a_validation_is_one_line_in_the_terminal_and_every_number_on_the_board(tmp_path, capsys):
    config = TrainConfig(version="a", log_base_dir=str(tmp_path), exp_name="run", epochs=1, steps_per_epoch=2)
    config.run_dir.mkdir()
    report = Report(model="", protocol={}, results=(result("ade20k", semantic={"miou": 0.5, "pixel": 0.75}),))
    with open_log(config, 0) as log:
        log_validation(2, report, log)
        log_validation(4, None, log)
    assert "step 2: ade20k semantic.miou 0.500" in capsys.readouterr().out
    board = EventAccumulator(str(config.run_dir)).Reload()
    assert [point.value for point in board.Scalars("val/ade20k/semantic/pixel")] == [0.75]
