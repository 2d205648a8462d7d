"""Averages of a training loop."""

from __future__ import annotations

import pytest
import torch

from utils import meters
from utils.meters import Meters


def test_means_are_weighted_and_forgotten_at_reset():
    averages = Meters()
    averages.add({"loss": torch.tensor(2.0, requires_grad=True), "dice": 0.5})
    averages.add({"loss": 5.0}, weight=2)
    assert averages.means() == pytest.approx({"loss": 4.0, "dice": 0.5})
    averages.reset()
    assert averages.means() == {}


def test_means_are_those_of_all_processes_also_when_one_lacks_a_name(monkeypatch):
    other = ({"loss": 10.0, "mask": 3.0}, {"loss": 1.0, "mask": 2.0})

    def all_gather_object(everyone, mine):
        everyone[:] = [mine, other]

    monkeypatch.setattr(meters.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(meters.dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(meters.dist, "all_gather_object", all_gather_object)
    averages = Meters()
    averages.add({"loss": 1.0}, weight=2)
    assert averages.means() == pytest.approx({"loss": 12 / 3, "mask": 1.5})
