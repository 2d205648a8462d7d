"""`make bench`: which scripts run with which flags, and the summary of their results. Nothing is measured here."""

from __future__ import annotations

import importlib
import json
import subprocess
from pathlib import Path

import pytest

from benchmarks import __main__ as bench
from benchmarks.measure import Claim, write_results

NAMES = ["loader", "metrics", "sam", "mask_decoders", "train_step", "answer", "serving"]


@pytest.fixture
def asked(monkeypatch):
    """Commands that were run; each writes a file with one claim that meets its bar and one that misses it."""
    commands = []

    def run(command, **keywords):
        commands.append(command)
        name = command[2].removeprefix("benchmarks.")
        if name == "sam":
            raise subprocess.CalledProcessError(1, command)
        out = next(flag.removeprefix("--out=") for flag in command if flag.startswith("--out="))
        claims = [
            Claim(name=f"{name} fast", value=2.0, bar=1.5, goal=3.0),
            Claim(name=f"{name} small", value=0.5, bar=0.25, at_least=False),
        ]
        write_results(out, {}, claims)
        return subprocess.CompletedProcess(command, 0, stdout=f"table of {name}\n")

    monkeypatch.setattr(bench.subprocess, "run", run)
    monkeypatch.setattr(bench, "READERS", {})
    return commands


def test_all_scripts_run_in_turn_and_one_page_joins_them(asked, tmp_path, capsys):
    assert bench.main(["--out", str(tmp_path)]) == 1  # one of them failed
    assert [command[2].removeprefix("benchmarks.") for command in asked] == NAMES
    text = capsys.readouterr().out
    assert "12 claims with a bar: 6 reach it, 0 their goal too" in text
    assert "missed: loader small: 0.5, bar 0.25" in text
    assert "failed: benchmarks.sam" in text
    page = (tmp_path / bench.PAGE).read_text()
    assert page.index("| answer small | 0.5 | <= 0.25 |") < page.index("table of loader")
    assert page.index("table of loader") < page.index("table of answer")


def test_only_those_named_run(asked, tmp_path):
    assert bench.main(["--only=answer,loader", "--out", str(tmp_path)]) == 0
    assert [command[2] for command in asked] == ["benchmarks.answer", "benchmarks.loader"]


def test_small_sizes_are_shown_and_not_judged(asked, tmp_path, capsys):
    assert bench.main(["--quick", "--only=loader", "--out", str(tmp_path)]) == 0
    assert set(bench.SCRIPTS[0].quick_flags) < set(asked[0])
    assert "0 claims with a bar" in capsys.readouterr().out
    assert "| loader small | 0.5 |  |  |  |" in (tmp_path / bench.PAGE).read_text()


def test_an_unknown_name_is_answered_with_those_that_exist(tmp_path, capsys):
    assert bench.main(["--only=speed", "--out", str(tmp_path)]) == 2
    assert f"unknown benchmark 'speed'; known: {', '.join(NAMES)}" in capsys.readouterr().err


@pytest.mark.parametrize("script", bench.SCRIPTS, ids=lambda script: script.name)
def test_every_script_takes_its_flags(script):
    module = importlib.import_module(f"benchmarks.{script.name}")
    for flags in (script.flags, script.quick_flags):
        parsed = module.parse_arguments([*flags, "--out=results/x.json"])
        assert Path(parsed.out) == Path("results/x.json")


def test_the_claims_of_the_older_scripts_are_read_from_their_numbers(tmp_path):
    ways = {
        way: {"times_plain": speed, "bytes_of_plain": size}
        for way, speed, size in zip(bench.loader.WAYS, (1.0, 1.8, 2.0), (1.0, 0.2, 0.2), strict=True)
    }
    content = {"results": [{"size": "640x480", "dataset": "ade20k", "ways": ways}]}
    (tmp_path / "loader.json").write_text(json.dumps(content))
    claims = bench.claims_of(bench.SCRIPTS[0], tmp_path)
    assert [(claim.value, claim.verdict) for claim in claims] == [(1.8, "bar"), (2.0, "missed"), (0.2, "bar")]
    ours = {"times_faster": 60.0, "share_of_memory": 0.1}
    content = {"results": [{"size": "640x480", "num_classes": 150, "num_masks": 10, "ways": {"ours": ours}}]}
    (tmp_path / "metrics.json").write_text(json.dumps(content))
    claims = bench.claims_of(bench.SCRIPTS[1], tmp_path)
    assert [claim.verdict for claim in claims] == ["bar", "missed"]
