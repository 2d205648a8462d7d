"""A profile: which steps, which parts, which files."""

from __future__ import annotations

import json

import pytest
import torch
from torch.profiler import record_function

from utils.training.profile import PARTS, PartTime, StepProfiler, parts_table


def train(profiler: StepProfiler, num_steps: int) -> None:
    for _ in range(num_steps):
        with record_function("loader"):
            values = torch.ones(8, 8, requires_grad=True)
        with record_function("backward"):
            (values @ values).sum().backward()
        profiler.step()


def test_the_steps_after_warm_up_are_profiled_and_the_loop_goes_on(tmp_path):
    with StepProfiler(2, tmp_path / "profile") as profiler:
        train(profiler, 3)
        assert not profiler.written
        train(profiler, 3)
        assert profiler.written
    trace = json.loads((tmp_path / "profile" / "trace.json").read_text())
    names = [event.get("name") for event in trace["traceEvents"] if event.get("cat") == "user_annotation"]
    assert names.count("backward") == names.count("loader") == 2
    text = (tmp_path / "profile" / "table.txt").read_text()
    part, calls, *_ = text.splitlines()[2].split()
    assert (part, calls) == ("backward", "2")
    assert "aten::mm" in text
    assert str(tmp_path / "profile" / "table.txt") in profiler.describe()


def test_too_few_steps_or_none_wanted_leave_nothing(tmp_path):
    with StepProfiler(0, tmp_path / "none") as profiler:
        train(profiler, 4)
    with StepProfiler(2, tmp_path / "short") as profiler:
        train(profiler, 1)
    assert "fewer steps" in profiler.describe()
    assert not list(tmp_path.iterdir())


def test_shares_are_of_the_gpu_where_there_is_one():
    host = [
        PartTime(name="loader", calls=2, host=3.0, device=0.0),
        PartTime(name="clip", calls=1, host=1.0, device=0.0),
    ]
    assert [line.split()[-1] for line in parts_table(host).splitlines()[1:]] == ["75.0%", "25.0%"]
    gpu = [
        PartTime(name="loader", calls=2, host=3.0, device=0.0),
        PartTime(name="clip", calls=1, host=1.0, device=4.0),
    ]
    assert [line.split()[-1] for line in parts_table(gpu).splitlines()[1:]] == ["0.0%", "100.0%"]


@pytest.mark.parametrize("file", ["utils/training/loop.py", "model/lasagna.py"])
def test_the_labels_in_the_code_are_known_parts(file):
    import re

    from tests.commands import REPOSITORY

    labels = re.findall(r'record_function\("([^"]+)"\)', (REPOSITORY / file).read_text())
    assert labels
    assert set(labels) <= set(PARTS)
