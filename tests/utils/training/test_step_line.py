"""The line of a step: 80 columns whatever the numbers, and the time that is left."""

from __future__ import annotations

import pytest

from utils.training import step_line as lines
from utils.training.step_line import StepClock, digits, duration, short, step_line

LOSSES = {"total": 1.234, "cross_entropy": 0.9, "mask_bce": 0.234, "dice": 0.1, "lr": 0.1}
SPEED = {"text_tokens_per_second": 3141.5, "memory_gb": 1.234}


def test_a_line_says_step_time_left_losses_speed_and_memory():
    line = step_line(12, 1800, 725, LOSSES, SPEED)
    assert line == "  12/1800 eta 12:05 loss 1.23 ce 0.90 bce 0.23 dice 0.10 3.1k tok/s 1.2 GB"


def test_with_a_spatial_prompt_the_losses_of_mask_and_map_are_added_up():
    line = step_line(1, 9, 0, {**LOSSES, "map_bce": 0.25, "map_dice": 0.5}, SPEED)
    assert "mask 0.33 map 0.75" in line
    assert "dice" not in line


@pytest.mark.parametrize("more", [{}, {"map_bce": 12.0, "map_dice": 1.0}])
@pytest.mark.parametrize("total", [1.234, 98.7, 12345.6, float("nan")])
def test_no_line_is_wider_than_80_columns(total, more):
    losses = {"total": total, "cross_entropy": 12.3, "mask_bce": 45.6, "dice": 0.5, **more}
    speed = {"text_tokens_per_second": 123456.0, "memory_gb": 141.0}
    assert len(step_line(18000, 18000, 10 * 86400, losses, speed)) <= 80


def test_a_step_that_was_skipped_says_so():
    assert step_line(1, 9, 0, LOSSES, SPEED, applied=False).endswith("GB skipped")


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "00:00"), (725.9, "12:05"), (3599, "59:59"), (3600, "1h00m"), (11100, "3h05m"), (187200, "2d04h")],
)
def test_the_time_left_is_short(seconds, shown):
    assert duration(seconds) == shown


def test_numbers_have_as_many_digits_as_mean_something():
    assert [digits(value) for value in (0.0, 0.0123, 1.234, 12.34, 123.4, 1234.5)] == [
        "0.00", "0.01", "1.23", "12.3", "123", "1234",
    ]  # fmt: skip
    assert [short(value) for value in (0.44, 9.96, 12.3, 999, 3141, 45678, 1.2e6)] == [
        "0.4", "10.0", "12", "999", "3.1k", "46k", "1.2M",
    ]  # fmt: skip


def test_the_time_left_leaves_out_the_first_step_and_counts_what_is_between_steps(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(lines.time, "perf_counter", lambda: now[0])
    clock = StepClock()
    now[0] = 100.0  # the first step compiles
    assert clock.seconds_left(100, 9) == 900
    now[0] = 102.0
    assert clock.seconds_left(2, 8) == 16
    now[0] = 108.0  # with a validation before it
    assert clock.seconds_left(2, 7) == 28
