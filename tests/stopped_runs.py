"""Stopping a training run in the middle, and comparing what it came to with another run."""

from __future__ import annotations

import pytest
import torch

from utils.training import loop


def stop_before(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """As if somebody pressed Ctrl-C in this step."""
    log_step = loop.log_step

    def log_or_stop(at: int, *arguments, **named):
        if at == step:
            raise KeyboardInterrupt
        return log_step(at, *arguments, **named)

    monkeypatch.setattr(loop, "log_step", log_or_stop)


def check_same_weights(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    """Weights of two runs that add the same numbers in another order.

    Softmax does not feel the bias of attention's keys: its gradient is zero but for rounding, and Adam, which divides
    a gradient by its size, makes whole steps of that.
    """
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        if not name.endswith("k_proj.bias"):
            torch.testing.assert_close(ours[name], value, rtol=0, atol=1e-4)
