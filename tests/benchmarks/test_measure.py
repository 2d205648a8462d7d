"""Shared by the benchmarks: alternating runs, peak memory, verdicts."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks.measure import STATUS, Claim, Runs, claims_table, peak_growth, take_turns, write_results


@pytest.mark.parametrize(
    ("value", "at_least", "verdict"),
    [(1.6, True, "missed"), (1.7, True, "bar"), (2.5, True, "goal"),
     (1.6, False, "goal"), (2.0, False, "bar"), (2.6, False, "missed")],
)  # fmt: skip
def test_verdicts(value, at_least, verdict):
    limits = (1.7, 2.5) if at_least else (2.5, 1.7)
    claim = Claim(name="a step", value=value, bar=limits[0], goal=limits[1], at_least=at_least)
    assert claim.verdict == verdict


def test_a_row_says_what_was_promised_and_what_came_out():
    rows = claims_table([Claim(name="speed", value=2.345, bar=1.7, goal=2.5), Claim(name="other", value=3.0)])
    assert rows.splitlines()[2:] == ["| speed | 2.35 | >= 1.7 | >= 2.5 | bar |", "| other | 3 |  |  |  |"]


def test_ways_take_turns_and_warm_up_is_not_counted():
    order: list[str] = []
    runs = take_turns({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 2, warm_up=1)
    assert "".join(order) == "ba" + "ab" + "ba"
    assert [len(run.seconds) for run in runs.values()] == [2, 2]


def test_times_faster_is_the_median_of_the_rounds():
    slow, fast = (Runs(seconds=np.array(s), peak_bytes=None) for s in ([4.0, 9.0, 8.0], [2.0, 3.0, 1.0]))
    assert fast.times_faster(slow) == 3.0


@pytest.mark.skipif(not STATUS.exists(), reason="the system does not say")
def test_the_peak_is_what_was_held_meanwhile_also_when_it_is_gone():
    peak = peak_growth(lambda: np.ones(25_000_000).sum())
    assert 190e6 < peak < 400e6


def test_the_file_holds_claims_with_their_verdicts(tmp_path):
    out = tmp_path / "new" / "x.json"
    write_results(out, {"rounds": 3}, [Claim(name="speed", value=2.0, bar=1.7)], results={"a": 1})
    content = json.loads(out.read_text())
    assert content["settings"]["rounds"] == 3
    assert content["claims"][0]["verdict"] == "bar"
    assert content["results"] == {"a": 1}
