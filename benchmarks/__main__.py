"""`make bench`: measures the performance claims one after the other and writes one page.

    python -m benchmarks                          # about ten minutes: runs/benchmarks/*.json and results.md
    python -m benchmarks --quick                  # small sizes, in a minute; bars do not apply
    python -m benchmarks --only sam,train_step

Each script runs in its own process with one thread. The page has all claims with their bars, then the output of each
script; at the end the command lists the claims that miss their bar. `benchmarks.full_scale`, which needs 40 GB of
disk and memory for a 7B model, is not part of it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks import ROOT, loader, metrics, script_parser
from benchmarks.measure import Claim, claims_table

PAGE = "results.md"


@dataclass(frozen=True)
class Script:
    """A benchmark with the flags of its full and of its quick run."""

    name: str
    title: str
    flags: tuple[str, ...] = ()
    quick_flags: tuple[str, ...] = ("--quick",)


SCRIPTS = (
    Script(
        "loader",
        "Samples from one process",
        ("--sizes=640x480", "--rounds=5"),
        ("--sizes=64x48", "--num_images=4", "--num_batches=2", "--rounds=2"),
    ),
    Script(
        "metrics",
        "Confusion matrices",
        ("--cases=640x480x150", "--rounds=5"),
        ("--cases=320x240x60", "--rounds=2"),
    ),
    Script("sam", "SAM's image encoder"),
    Script("mask_decoders", "Mask decoders"),
    Script("train_step", "Training step"),
    Script("answer", "Answers to complex queries"),
    Script("serving", "Requests to the server", ("--sizes=tiny",)),
)


def run(script: Script, folder: Path, *, quick: bool) -> str:
    """Runs a benchmark, which writes its JSON file into `folder`; returns its output."""
    flags = script.quick_flags if quick else script.flags
    command = [
        sys.executable,
        "-m",
        f"benchmarks.{script.name}",
        *flags,
        f"--out={result_file(folder, script)}",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    return subprocess.run(
        command, cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE, text=True
    ).stdout.strip()


def result_file(folder: Path, script: Script) -> Path:
    return folder.resolve() / f"{script.name}.json"


def claims_of(script: Script, folder: Path) -> list[Claim]:
    """The claims in a benchmark's JSON file."""
    content = json.loads(result_file(folder, script).read_text(encoding="utf-8"))
    if script.name in READERS:
        return READERS[script.name](content["results"])
    fields = ("name", "value", "bar", "goal", "at_least")
    return [Claim(**{field: claim.get(field) for field in fields}) for claim in content["claims"]]


def loader_claims(results: list[dict[str, Any]]) -> list[Claim]:
    """Speed and bytes of a batch, against the plain loader."""
    exact, fast = loader.WAYS[1:]
    claims = []
    for result in results:
        about, ways = f"{result['dataset']}, images of {result['size']}", result["ways"]
        is_promised = result["size"] == loader.GOAL_SIZE
        for way, bar in ((exact, loader.GOAL_EXACT), (fast, loader.GOAL_FAST)):
            name = f"samples a second, {about}, {way}, times faster"
            claims.append(Claim(name=name, value=ways[way]["times_plain"], bar=bar if is_promised else None))
        claims.append(
            Claim(
                name=f"bytes of a batch, {about}, share of the plain loader's",
                value=ways[exact]["bytes_of_plain"],
                bar=loader.GOAL_BYTES if is_promised else None,
                at_least=False,
            )
        )
    return claims


def metrics_claims(results: list[dict[str, Any]]) -> list[Claim]:
    """Speed and memory of counting an image, against dense arrays."""
    claims = []
    for result in results:
        about = f"{result['size']}, {result['num_classes']} classes, {result['num_masks']} masks"
        is_promised, ours = result["num_masks"] <= metrics.GOAL_MASKS, result["ways"]["ours"]
        name = f"confusion matrix, {about}, times faster"
        bar = metrics.GOAL_SPEED if is_promised else None
        claims.append(Claim(name=name, value=ours["times_faster"], bar=bar))
        if ours["share_of_memory"] is not None:
            name = f"confusion matrix, {about}, share of the dense memory"
            bar = metrics.GOAL_MEMORY if is_promised else None
            claims.append(Claim(name=name, value=ours["share_of_memory"], bar=bar, at_least=False))
    return claims


READERS = {"loader": loader_claims, "metrics": metrics_claims}


def page_of(printed: Sequence[tuple[Script, str, float]], claims: Sequence[Claim]) -> str:
    """Markdown: all claims, then the output and the duration of each script."""
    parts = ["# Benchmarks", claims_table(claims)]
    for script, text, seconds in printed:
        parts += [f"## {script.title}", f"`python -m benchmarks.{script.name}`, {seconds:.0f} s", text]
    return "\n\n".join(parts) + "\n"


def summary(claims: Sequence[Claim], failed: Sequence[Script]) -> str:
    """The claims that miss their bar, and the scripts that failed."""
    judged = [claim for claim in claims if claim.verdict]
    missed = [claim for claim in judged if claim.verdict == "missed"]
    reached = sum(claim.verdict == "goal" for claim in judged)
    lines = [
        f"{len(judged)} claims with a bar: {len(judged) - len(missed)} reach it, {reached} their goal too"
    ]
    lines += [f"missed: {claim.name}: {claim.value:.3g}, bar {claim.bar:g}" for claim in missed]
    lines += [f"failed: benchmarks.{script.name}, see above" for script in failed]
    return "\n".join(lines)


def chosen_scripts(only: str) -> list[Script]:
    """The named benchmarks, separated by commas; all if empty.

    Raises:
        ValueError: there is no benchmark of this name.
    """
    known = {script.name: script for script in SCRIPTS}
    names = [name for name in only.split(",") if name] or list(known)
    for name in names:
        if name not in known:
            raise ValueError(f"unknown benchmark {name!r}; known: {', '.join(known)}")
    return [known[name] for name in names]


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = script_parser("benchmarks", __doc__)
    parser.add_argument("--only", default="", help="benchmarks to run, separated by commas; all if not given")
    parser.add_argument("--quick", action="store_true", help="small sizes, to which no bar applies")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"), help="folder to write")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    try:
        scripts = chosen_scripts(arguments.only)
    except ValueError as problem:
        print(f"benchmarks: {problem}", file=sys.stderr)
        return 2
    arguments.out.mkdir(parents=True, exist_ok=True)
    printed, claims, failed = [], [], []
    for script in scripts:
        print(f"{script.name} ...", flush=True)
        start = time.monotonic()
        try:
            text = run(script, arguments.out, quick=arguments.quick)
        except subprocess.CalledProcessError:
            failed.append(script)
            continue
        printed.append((script, text, time.monotonic() - start))
        found = claims_of(script, arguments.out)
        # The bars are for the full sizes; small ones only show that the scripts work.
        claims += [replace(claim, bar=None, goal=None) for claim in found] if arguments.quick else found
        print(f"{text}\n", flush=True)
    (arguments.out / PAGE).write_text(page_of(printed, claims), encoding="utf-8")
    print(f"{summary(claims, failed)}\nwritten to {arguments.out / PAGE}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
