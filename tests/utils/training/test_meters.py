"""What a training loop measures, over a step and over all processes."""

from __future__ import annotations

import pytest
import torch

from utils.common import distributed
from utils.training.meters import Meters, peak_memory


def test_means_are_weighted_and_everything_is_forgotten_at_reset():
    measured = Meters(
        means=("loss", "dice", "unseen"), totals=("images", "tokens"), peaks=("memory", "unseen")
    )
    measured.add({"loss": torch.tensor(2.0, requires_grad=True), "dice": 0.5})
    measured.add({"loss": 5.0}, weight=2)
    measured.count({"images": 2})
    measured.count({"images": 3, "tokens": 10})
    measured.peak({"memory": 7.0})
    measured.peak({"memory": 4.0})
    summary = measured.summary()
    assert summary.means == pytest.approx({"loss": 4.0, "dice": 0.5})
    assert summary.totals == {"images": 5, "tokens": 10}
    assert summary.peaks == {"memory": 7.0}
    measured.reset()
    empty = measured.summary()
    assert (empty.means, empty.totals, empty.peaks) == ({}, {"images": 0, "tokens": 0}, {})
    with pytest.raises(KeyError):
        measured.add({"misspelt": 1.0})


@pytest.mark.parametrize("rank", [0, 1])
def test_a_summary_is_of_all_processes_in_one_exchange_also_when_one_has_not_seen_a_name(rank, monkeypatch):
    def meters_of(process: int) -> Meters:
        meters = Meters(means=("loss", "mask"), totals=("images", "masks"), peaks=("memory", "power"))
        if process == 0:
            meters.add({"loss": 1.0}, weight=2)
            meters.count({"images": 2})
            meters.peak({"memory": -5.0})
        else:
            meters.add({"loss": 10.0, "mask": 1.5})
            meters.count({"images": 4, "masks": 1})
            meters.peak({"memory": -9.0, "power": 3.0})
        return meters

    def numbers_of(process: int) -> torch.Tensor:
        """What a process hands to the exchange."""
        seen = []
        with monkeypatch.context() as patch:
            patch.setattr(distributed.dist, "get_rank", lambda: process)
            patch.setattr(distributed.dist, "all_reduce", lambda numbers: seen.append(numbers.clone()))
            meters_of(process).summary()
        return seen[0]

    monkeypatch.setattr(distributed.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed.dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(distributed.dist, "get_backend", lambda: "gloo")
    other, exchanges = numbers_of(1 - rank), []
    monkeypatch.setattr(distributed.dist, "get_rank", lambda: rank)
    monkeypatch.setattr(distributed.dist, "all_reduce", lambda numbers: exchanges.append(numbers.add_(other)))
    summary = meters_of(rank).summary()
    assert summary.means == pytest.approx({"loss": 12 / 3, "mask": 1.5})
    assert summary.totals == {"images": 6, "masks": 1}
    assert summary.peaks == {"memory": -5.0, "power": 3.0}
    assert len(exchanges) == 1


def test_the_memory_of_a_process_is_counted_in_bytes():
    with_libraries = peak_memory(torch.device("cpu"))
    assert 50e6 < with_libraries < 1e12
    assert peak_memory(torch.device("cpu")) >= with_libraries
