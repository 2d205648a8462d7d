"""Loss curves: each step once, and a running mean."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from utils.reports.curves import read_curves, running_mean, save_curves


def test_curves_are_written_and_nothing_to_draw_is_an_error(tmp_path):
    path = tmp_path / "new" / "loss.png"
    save_curves(
        {"total": [(step, 1 / (step + 1)) for step in range(50)], "dice": [(3, 0.5)], "none": []}, path
    )
    with Image.open(path) as image:
        assert image.width > image.height
    with pytest.raises(ValueError, match="was anything logged"):
        save_curves({"none": []}, path)


def test_curves_of_a_resumed_run_hold_each_step_once(tmp_path):
    path = tmp_path / "losses.jsonl"
    lines = [(1, 5.0), (2, 4.0), (3, 9.0), (2, 4.5), (3, 3.0)]
    path.write_text("".join(f'{{"step": {step}, "total": {value}, "lr": 1}}\n' for step, value in lines))
    assert read_curves(path, ["total", "dice"]) == {"total": [(1, 5.0), (2, 4.5), (3, 3.0)], "dice": []}


def test_running_mean_equals_a_plain_loop():
    values = np.random.default_rng(0).random(17)
    expected = [values[max(k - 3, 0) : k + 4].mean() for k in range(17)]
    np.testing.assert_allclose(running_mean(values, 3), expected)
