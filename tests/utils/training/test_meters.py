"""What a training loop measures, over a step and over all processes."""

from __future__ import annotations

import pytest
import torch

from utils.training import meters
from utils.training.meters import Meters, peak_memory


def test_means_are_weighted_and_everything_is_forgotten_at_reset():
    measured = Meters()
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
    assert (empty.means, empty.totals, empty.peaks) == ({}, {}, {})


def test_a_summary_is_of_all_processes_in_one_exchange_also_when_one_lacks_a_name(monkeypatch):
    other = (
        {"loss": 10.0, "mask": 3.0},
        {"loss": 1.0, "mask": 2.0},
        {"images": 4, "masks": 1},
        {"memory": 9.0},
    )
    exchanges = []

    def all_gather_object(everyone, mine):
        exchanges.append(mine)
        everyone[:] = [mine, other]

    monkeypatch.setattr(meters.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(meters.dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(meters.dist, "all_gather_object", all_gather_object)
    measured = Meters()
    measured.add({"loss": 1.0}, weight=2)
    measured.count({"images": 2})
    measured.peak({"memory": 5.0})
    summary = measured.summary()
    assert summary.means == pytest.approx({"loss": 12 / 3, "mask": 1.5})
    assert summary.totals == {"images": 6, "masks": 1}
    assert summary.peaks == {"memory": 9.0}
    assert len(exchanges) == 1


def test_the_memory_of_a_process_is_counted_in_bytes():
    with_libraries = peak_memory(torch.device("cpu"))
    assert 50e6 < with_libraries < 1e12
    assert peak_memory(torch.device("cpu")) >= with_libraries
