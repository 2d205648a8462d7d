"""The benchmark of SAM's encoder: all ways compute the same result, and the claims have the promised bars."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from segment_anything.modeling.image_encoder import Attention

from benchmarks import sam
from benchmarks.measure import Runs
from model.decoders.sam import SamSettings
from model.decoders.sam_attention import FusedAttention
from model.encoder_precision import cpu_has_bf16


def test_the_command_prints_tables_and_writes_a_file(tmp_path, capsys):
    out = tmp_path / "results" / "sam.json"
    assert sam.main(["--quick", "--rounds=2", f"--out={out}"]) == 0
    claims, runs = (part.splitlines() for part in capsys.readouterr().out.strip().split("\n\n"))
    content = json.loads(out.read_text())
    assert len(claims) == 2 + len(content["claims"])
    assert len(runs) == 2 + 2 + 3 + cpu_has_bf16()
    assert len({line.count("|") for line in claims}) == len({line.count("|") for line in runs}) == 1
    assert {claim["bar"] for claim in content["claims"]} == {None}  # the toy's SAM was promised nothing
    for ways in content["results"].values():
        assert sam.EAGER in ways
        assert all(len(way["seconds"]) == 2 and way["median_seconds"] > 0 for way in ways.values())


def test_both_encoders_have_the_same_weights_and_their_own_attention():
    settings = SamSettings(
        image_size=64, encoder_dim=16, encoder_depth=2, encoder_num_heads=2, encoder_mlp_dim=32,
        encoder_global_blocks=(1,), encoder_window_size=3, prompt_embed_dim=32, decoder_mlp_dim=32,
    )  # fmt: skip
    bench = sam.Bench(settings)
    assert {type(block.attn) for block in bench.eager.blocks} == {Attention}
    assert {type(block.attn) for block in bench.ours.blocks} == {FusedAttention}
    ours = dict(bench.ours.named_parameters())
    for name, parameter in bench.eager.named_parameters():
        assert ours[name].data_ptr() == parameter.data_ptr(), name
        assert parameter.any() or name.endswith("bias"), name
    assert bench.block == 1
    for ways in (bench.encoders(), bench.attentions()):
        with torch.no_grad():
            results = [way() for way in ways.values()]
        for name, result in zip(ways, results, strict=True):
            if name == sam.HALF:
                torch.testing.assert_close(result, results[0], rtol=0.05, atol=0.05)
                continue
            torch.testing.assert_close(result, results[0], rtol=1e-5, atol=1e-6)


def test_ways_with_different_results_are_not_compared():
    ways = {sam.EAGER: lambda: torch.ones(2), sam.OURS: lambda: torch.ones(2) * 1.001}
    with pytest.raises(AssertionError, match="ours is off by"):
        sam.compare(ways, 1)


def test_the_promised_ratios_are_read_from_the_runs():
    def runs(seconds, peak_bytes):
        return Runs(seconds=np.array(seconds), peak_bytes=peak_bytes)

    encoder = {sam.EAGER: runs([20.0, 30.0, 24.0], 2.4e9), sam.OURS: runs([10.0, 20.0, 16.0], 0.3e9)}
    faster, share = sam.to_claims("medium", encoder)
    assert (faster.value, faster.bar, faster.goal, faster.verdict) == (1.5, 1.2, 2.0, "bar")
    assert (share.value, share.bar, share.goal, share.verdict) == (0.125, 0.5, 0.25, "goal")
    half = {**encoder, sam.HALF: runs([5.0, 6.0, 4.0], None)}
    assert [(claim.value, claim.verdict) for claim in sam.to_claims("medium", half)][1] == (5.0, "goal")
    unknown = {name: runs(run.seconds, None) for name, run in encoder.items()}
    assert [claim.value for claim in sam.to_claims("medium", unknown)] == [1.5]


def test_medium_is_vit_b():
    settings = sam.settings_of("medium")
    assert (settings.image_size, settings.encoder_dim, settings.encoder_depth) == (1024, 768, 12)
    assert sam.parse_arguments([]).size == "medium"
    assert sam.parse_arguments(["--quick"]).size == "tiny"
