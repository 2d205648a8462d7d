"""The benchmark of answers: all ways give the same answer, and the claims have the promised bars."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from benchmarks import answer
from benchmarks.measure import Runs
from benchmarks.models import build
from benchmarks.queries import Asker, check_same, make_query, single_tokens

NAMES = ("wall", "chest of drawers", "sky", "tree", "swimming pool", "person", "car")


@pytest.fixture(scope="module")
def query():
    return make_query(Asker(*build("tiny")), NAMES, 3)


def test_every_way_to_an_answer_gives_the_same(query):
    assert sum(query.answer.present) == 3
    run = query.again(query.plain.with_cache)
    check_same(query, run().present, run().states)
    again = query.again(query.plain.without_cache)()
    check_same(query, again.present, again.states)
    query.again(query.in_passes)()
    for position, decide in single_tokens(query, 3).items():
        assert position in query.plain.plan.positions
        query.again(decide)()
    [masks] = query.draw()
    assert masks.shape == (3, 480, 640)


def test_other_answers_are_not_compared(query):
    states = list(query.answer.seg_states)
    with pytest.raises(AssertionError, match="other choices"):
        check_same(query, [not present for present in query.answer.present], states)
    with pytest.raises(AssertionError, match="states differ"):
        check_same(query, query.answer.present, [state + 1 for state in states])


def test_the_command_prints_tables_and_writes_a_file(tmp_path, capsys):
    out = tmp_path / "results" / "answer.json"
    flags = ["--quick", "--asked", "4", "9", "--num_present=2", "--without_cache=tiny", "--num_lengths=2"]
    assert answer.main([*flags, f"--out={out}"]) == 0
    claims, runs = (part.splitlines() for part in capsys.readouterr().out.strip().split("\n\n"))
    content = json.loads(out.read_text())
    assert len(claims) == 2 + len(content["claims"]) == 2 + 6
    assert len(runs) == 2 + len(content["results"]["tiny"]) == 2 + 7
    assert len({line.count("|") for line in claims}) == len({line.count("|") for line in runs}) == 1
    assert all(run["median_seconds"] > 0 for run in content["results"]["tiny"].values())
    assert all("2 present" in about for about in content["queries"]["tiny"].values())
    assert content["trained_passes"] == []
    assert {claim["bar"] for claim in content["claims"]} == {None}  # one round is not judged


def test_claims_are_read_from_the_runs(query):
    def runs(**seconds):
        return {name: Runs(seconds=np.array([value]), peak_bytes=None) for name, value in seconds.items()}

    long = len(NAMES)
    seconds = {answer.in_passes_name(2): 1.0, answer.in_passes_name(long): 2.0, answer.TOKENS: 12.0}
    seconds |= {answer.CLIP: 3.0, answer.MASKS: 1.0}
    last = query.plain.num_tokens - 1
    seconds |= {f"{answer.RELEASED} 0": 10.0, f"{answer.RELEASED} {last}": 20.0}
    measured = answer.Measured(size="medium", runs=runs(**seconds), queries={2: query, long: query})
    tokens = 15.0 * (last + 1)  # from 10 to 20 seconds each, evenly
    cached, with_all, released, as_there, growth, alone = answer.to_claims(measured)
    assert (cached.value, cached.bar, cached.goal) == (6, 3, 6)
    assert (with_all.value, with_all.bar) == (16 / 6, None)
    assert released.value == pytest.approx((tokens + 3 + 1) / 6)
    assert (released.bar, released.goal) == (50, 100)
    assert as_there.value == pytest.approx((tokens + 3 * (last + 1) + 1) / 6)
    assert (growth.value, growth.bar, growth.goal, growth.at_least) == (6 / 5, 5, 3, False)
    assert (alone.value, alone.bar) == (2, None)


def test_passes_of_a_trained_model_are_counted(tmp_path):
    """Here of an untrained one, saved as a folder."""
    model, _ = build("tiny")
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        passes = answer.passes_of_trained(str(tmp_path), 1)
    assert len(passes) == 1
    assert 1 <= passes[0] <= 21
