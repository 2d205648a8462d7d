"""The benchmark of the training step: all ways have the same loss, and the claims have the promised bars."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks import train_step
from benchmarks.measure import Runs
from model.encoder_precision import cpu_has_bf16

SMALL = ["--size=tiny", "--rounds=1", "--num_images=1", "--num_conversations=2", "--growth", "1", "2"]


def test_the_command_prints_tables_and_writes_a_file(tmp_path, capsys):
    out = tmp_path / "results" / "train_step.json"
    assert train_step.main([*SMALL, f"--out={out}"]) == 0
    claims, runs = (part.splitlines() for part in capsys.readouterr().out.strip().split("\n\n"))
    content = json.loads(out.read_text())
    assert len(claims) == 2 + len(content["claims"]) == 2 + 5 + cpu_has_bf16()
    assert len({line.count("|") for line in claims}) == len({line.count("|") for line in runs}) == 1
    assert {claim["bar"] for claim in content["claims"]} == {None}  # tiny was promised nothing
    for runs_of_part in content["results"].values():
        for run in runs_of_part.values():
            assert len(run["seconds"]) == 1
            assert run["median_seconds"] > 0
    # Two rows with the image each against one row with the image once.
    tokens = content["tokens"]
    assert tokens["image"] < tokens["ours"] < tokens["reference"] - tokens["image"] / 2


def test_ways_with_different_losses_are_not_compared():
    with pytest.raises(AssertionError, match="another loss"):
        train_step.compare({train_step.REFERENCE: lambda: 1.0, train_step.OURS: lambda: 1.01}, 1, 0)


def test_the_promised_ratios_are_read_from_the_runs():
    def runs(**seconds):
        return {name: Runs(seconds=np.array([value]), peak_bytes=None) for name, value in seconds.items()}

    steps = runs(reference=80.0, ours=40.0) | {
        train_step.CACHED: Runs(seconds=np.array([8.0]), peak_bytes=None)
    }
    growth = {
        train_step.growth_name(1): 10.0,
        train_step.growth_name(10): 14.0,
        train_step.growth_name(1, encoded=True): 2.0,
        train_step.growth_name(10, encoded=True): 6.0,
    }
    parts = {"step": steps, "language": runs(reference=30.0, ours=10.0), "growth": runs(**growth)}
    claims = train_step.to_claims("medium", "2 images x 5", parts, (1, 10))
    assert [claim.value for claim in claims] == pytest.approx([2.0, 10.0, 3.0, 1.4, 3.0])
    assert [claim.verdict for claim in claims] == ["bar", "goal", "bar", "goal", ""]
    assert [claim.bar for claim in claims] == [1.7, 5, 2.5, 2, None]
    assert len(train_step.to_claims("medium", "2 images x 5", {"step": steps}, (1, 10))) == 2


def test_an_unknown_part_is_answered_with_those_that_exist(capsys):
    with pytest.raises(SystemExit):
        train_step.parse_arguments(["--parts=step,speech"])
    assert "unknown speech; known: step, language, growth" in capsys.readouterr().err


def test_quick_is_tiny():
    arguments = train_step.parse_arguments(["--quick"])
    assert (arguments.size, arguments.rounds) == ("tiny", 3)
