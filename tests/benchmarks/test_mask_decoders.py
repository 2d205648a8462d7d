"""The benchmark of the mask decoders: both ways compute the same, and every way is measured."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks import mask_decoders
from benchmarks.mask_decoders import LIBRARY, OURS


def test_the_command_prints_a_table_and_writes_a_file(tmp_path, capsys):
    out = tmp_path / "mask_decoders.json"
    assert mask_decoders.main(["--quick", "--rounds=1", f"--out={out}"]) == 0
    content = json.loads(out.read_text())
    assert len(content["claims"]) == 2
    assert "SAM 2's mask decoder, 10 masks of a 8 x 8 grid" in capsys.readouterr().out
    assert {name: list(ways) for name, ways in content["results"].items()} == {
        "SAM": [LIBRARY, OURS],
        "SAM 2": [LIBRARY, OURS],
    }


def test_ways_with_different_results_are_not_compared():
    ways = {LIBRARY: lambda: [torch.ones(2)], OURS: lambda: [torch.ones(2) * 1.001]}
    with pytest.raises(AssertionError, match="ours is off by"):
        mask_decoders.compare(ways, 1)
