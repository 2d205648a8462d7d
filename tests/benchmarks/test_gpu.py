"""`make gpu`: every part runs at small sizes without a GPU; what fails is said, and nothing is lost."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu.machine import Machine
from benchmarks.gpu.results import Results
from benchmarks.gpu.step import TrainingStep


@pytest.mark.parametrize("part", list(gpu.PARTS))
def test_every_part_runs_on_a_cpu(part, tmp_path, capsys, workspace):
    assert gpu.main(["--tiny", f"--out={tmp_path}", f"--parts={part}"]) == 0, capsys.readouterr().out
    content = json.loads((tmp_path / "gpu.json").read_text())
    assert content["problems"] == {}
    assert content["claims"][part] or content["tables"]
    assert (tmp_path / "gpu.md").read_text().strip() in capsys.readouterr().out


def test_without_a_gpu_one_line_says_so(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 2
    assert capsys.readouterr().err == "benchmarks.gpu: no CUDA GPU is here; --tiny runs every part on a CPU\n"


def test_what_fails_is_kept_and_the_rest_goes_on(tmp_path, monkeypatch, capsys):
    def fails(machine, results):
        results.add("card", "before", 1.0, bar=2.0)
        raise RuntimeError("no kernel image")

    monkeypatch.setitem(gpu.PARTS, "card", fails)
    monkeypatch.setitem(gpu.PARTS, "sam", lambda machine, results: results.add("sam", "after", 3.0))
    assert gpu.main(["--tiny", f"--out={tmp_path}", "--parts=card,sam"]) == 1
    content = json.loads((tmp_path / "gpu.json").read_text())
    assert "no kernel image" in content["problems"]["card: all of it"]
    assert [claim["value"] for claims in content["claims"].values() for claim in claims] == [1.0, 3.0]
    assert "missed: before\nfailed: card: all of it" in capsys.readouterr().out


def test_a_part_that_would_start_too_late_is_named(tmp_path):
    assert gpu.main(["--tiny", f"--out={tmp_path}", "--parts=card", "--seconds=-1"]) == 1
    results = Results(folder=tmp_path)
    results.save()
    assert results.verdict() == "All bars are met."


def test_an_unknown_part_is_answered_with_those_that_exist(capsys):
    with pytest.raises(SystemExit):
        gpu.main(["--parts=speed"])
    assert "unknown speed; known: card, correct," in capsys.readouterr().err


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_forward_and_backward_never_wait_for_the_gpu():
    """Needs a GPU: a value that the host reads, or a copy that blocks, raises."""
    machine = Machine(tiny=True, device=torch.device("cuda"), dtype=torch.bfloat16)
    step = TrainingStep(machine)
    batch = step.batch(2, 3)
    step.learn(batch)  # kernels are loaded
    torch.cuda.set_sync_debug_mode("error")
    try:
        step.learn(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
