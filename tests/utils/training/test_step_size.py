"""How a step is divided among another number of processes."""

from __future__ import annotations

import dataclasses

import pytest

from utils.config.training import TrainConfig
from utils.training.step_size import StepSize, accumulation_of


def config(batch_size: int, accumulation: int) -> TrainConfig:
    return TrainConfig(version="x", batch_size=batch_size, grad_accumulation_steps=accumulation)


def step(batch_size: int, accumulation: int, num_processes: int) -> StepSize:
    return StepSize.of(config(batch_size, accumulation), num_processes, accumulation)


def test_a_new_run_and_one_that_goes_on_as_it_was_have_what_they_were_given(caplog):
    assert accumulation_of(config(2, 10), 8, None) == 10
    assert accumulation_of(config(2, 10), 8, step(2, 10, 8)) == 10
    assert not caplog.text


@pytest.mark.parametrize(("processes", "accumulation"), [(1, 80), (2, 40), (16, 5), (80, 1)])
def test_the_same_command_keeps_the_step_on_any_number_of_processes(processes, accumulation, caplog):
    assert accumulation_of(config(2, 10), processes, step(2, 10, 8)) == accumulation
    assert f"{processes} processes, 8 before: a step stays 160 images" in caplog.text


def test_it_stays_so_over_several_starts(caplog):
    """10 x 1 becomes 5 x 2; then the same command once more on two processes, and on one."""
    before = StepSize.of(config(2, 10), 2, 5)
    assert accumulation_of(config(2, 10), 2, before) == 5
    assert not caplog.text
    assert accumulation_of(config(2, 10), 1, before) == 10


@pytest.mark.parametrize(
    ("given", "processes", "accumulation", "images"),
    [((2, 10), 3, 10, 60), ((2, 4), 1, 4, 8), ((2, 4), 2, 4, 16), ((4, 10), 1, 10, 40)],
)
def test_what_cannot_be_divided_or_is_given_otherwise_is_taken_and_explained(
    given, processes, accumulation, images, caplog
):
    assert accumulation_of(config(*given), processes, step(2, 10, 1)) == accumulation
    for part in (f"a step is {images} images from here on, 20 before", "--lr is not scaled", "must be 20"):
        assert part in caplog.text


def test_other_micro_batches_of_as_many_images_are_told(caplog):
    assert accumulation_of(config(4, 5), 1, step(2, 10, 1)) == 5
    assert "other micro-batches weigh the samples otherwise" in caplog.text


def test_a_step_travels_through_a_save():
    before = step(2, 10, 4)
    assert StepSize(**dataclasses.asdict(before)) == before
