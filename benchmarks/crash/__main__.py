"""Kills training runs - at random, and before, in and after every kind of write - and resumes them.

    python -m benchmarks.crash                       # 50 kills, about 15 minutes on one idle core
    python -m benchmarks.crash --kills 4 --only 1xfp32
    python -m benchmarks.crash --out runs/crash.json

The runs are those of train_ds.py on the toy world, with one and two processes, in fp32 (ZeRO-0) and bf16 (ZeRO-2),
with saves between epochs and validations whose scores are told. After a kill the same command is run again, and all
that it leaves is compared with the uninterrupted run, to the last bit. Exit code 1 if anything differs.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}

import train_ds  # noqa: F401  once, for all runs
from benchmarks import script_parser
from benchmarks.crash.compare import differences, last_step, newest_named, resumed_at
from benchmarks.crash.runs import (
    SAVE_EVERY,
    STEPS_PER_EPOCH,
    Kill,
    Kind,
    Outcome,
    kind_of,
    moments_of,
    of_many_kinds,
    start,
)
from utils.toy.world import WorldConfig, make_world

KINDS = tuple(Kind(processes, precision) for processes in (1, 2) for precision in ("fp32", "bf16"))
ENDS_WITHIN = 60.0  # seconds for a process whose other one has been killed


@dataclass(frozen=True)
class Case:
    """What one kill came to."""

    kind: str
    moment: str
    killed: bool  # False: the run had ended before
    steps_lost: int
    seconds: float  # of the resume
    seconds_alone: float  # that the process that was left took to end
    problems: tuple[str, ...]


def main(argv: Sequence[str] | None = None) -> int:
    parser = script_parser("benchmarks.crash", __doc__)
    parser.add_argument("--kills", type=int, default=50, help="kills, over all kinds of runs")
    parser.add_argument("--only", default="", help="kinds of runs, as in 1xfp32,2xbf16")
    parser.add_argument("--seed", type=int, default=0, help="another seed draws other moments")
    parser.add_argument("--out", default="", help="JSON file for the results")
    parser.add_argument("--keep", default="", help="folder for the runs; those with problems stay")
    options = parser.parse_args(argv)
    kinds = [kind for kind in KINDS if not options.only or kind.name in options.only.split(",")]
    if not kinds or options.kills < len(kinds):
        parser.error(
            f"--only must name some of {', '.join(kind.name for kind in KINDS)}, each with a kill or more"
        )
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="crash_") as temporary:
        folder = Path(options.keep or temporary).resolve()
        dataset = folder / "dataset"
        make_world(WorldConfig(out=str(dataset), num_images=8, layouts="ade20k,refer"))
        cases: list[Case] = []
        for index, kind in enumerate(kinds):
            number = options.kills // len(kinds) + (index < options.kills % len(kinds))
            cases += kills_of(
                kind, number, dataset, folder / kind.name, random.Random(f"{options.seed} {kind.name}")
            )
    print(table(cases))
    print(f"{len(cases)} kills in {time.monotonic() - began:.0f} s")
    if options.out:
        Path(options.out).write_text(json.dumps([asdict(case) for case in cases], indent=1) + "\n")
    return 1 if any(case.problems for case in cases) else 0


def kills_of(kind: Kind, number: int, dataset: Path, folder: Path, rng: random.Random) -> list[Case]:
    """So many kills of one kind of run: two of three at a write, the others at a random time."""
    whole = start(kind, dataset, folder / "whole")
    if any(whole.codes):
        raise RuntimeError(f"the run that nobody kills ended with {whole.codes}:\n{whole.log[-4000:]}")
    moments = [
        (rank, place, text)
        for rank in range(kind.processes)
        for place, text in enumerate(moments_of(folder / "whole", rank))
    ]
    texts = [f"{rank} {text}" for rank, _, text in moments]
    num_kinds = len(set(map(kind_of, texts)))
    print(f"{kind.name}: {len(moments)} moments of {num_kinds} kinds, {whole.seconds:.0f} s", flush=True)
    at_writes = number - number // 3
    kills = [
        Kill(rank=moments[place][0], moment=moments[place][1], both=bool(rng.randrange(2)))
        for place in of_many_kinds(texts, at_writes, rng)
    ]
    kills += [
        Kill(
            rank=rng.randrange(kind.processes),
            seconds=rng.uniform(0, 0.9 * whole.seconds_of_steps),
            both=bool(rng.randrange(2)),
        )
        for _ in range(number - at_writes)
    ]
    cases = []
    for index, kill in enumerate(kills):
        case = try_kill(kind, kill, dataset, folder / f"kill_{index}", folder / "whole")
        cases.append(case)
        found = "; ".join(case.problems) or "ok"
        print(f"{kind.name} {case.moment}: {case.steps_lost} steps lost, {found[:300]}", flush=True)
        if not case.problems:
            shutil.rmtree(folder / f"kill_{index}")
    return cases


def try_kill(kind: Kind, kill: Kill, dataset: Path, folder: Path, whole: Path) -> Case:
    """One kill, one resume, one comparison."""
    killed = start(kind, dataset, folder, kill)
    problems = end_problems(kind, kill, killed)
    reached, saved = last_step(folder / "run"), newest_named(folder / "run")
    resumed = start(kind, dataset, folder)
    if any(resumed.codes):
        last = resumed.log.strip().splitlines()[-1:] or [""]
        problems.append(f"the resume ended with {resumed.codes}: {last[0]}")
    at = resumed_at(resumed.log)
    if at != saved:
        problems.append(f"continued at step {at}, and step {saved} was saved")
    lost = max(reached - at, 0)
    if lost > min(SAVE_EVERY, STEPS_PER_EPOCH):
        problems.append(f"{lost} steps lost")
    problems += differences(folder / "run", whole / "run")
    what = f"at {kill.seconds:.2f} s" if kill.moment is None else moments_of(whole, kill.rank)[kill.moment]
    who = (
        f"rank {kill.rank}" + (" and the other" if kill.both else "") if kind.processes > 1 else "the process"
    )
    return Case(
        kind=kind.name, moment=f"{who}, {what}", killed=-9 in killed.codes, steps_lost=lost, seconds=resumed.seconds,
        seconds_alone=killed.seconds_alone, problems=tuple(problems),
    )  # fmt: skip


def end_problems(kind: Kind, kill: Kill, killed: Outcome) -> list[str]:
    """What is wrong with how the processes ended: the killed one by the kill, the other by itself, and soon."""
    problems = []
    if kill.moment is not None and killed.codes[kill.rank] != -9:
        problems.append(f"the moment did not come: {killed.codes}")
    if kind.processes == 1 or kill.both or killed.codes[kill.rank] != -9:
        return problems
    other = killed.codes[1 - kill.rank]
    if other not in (0, 4):
        problems.append(f"the process that was left ended with {other}")
    if killed.seconds_alone > ENDS_WITHIN:
        problems.append(f"the process that was left took {killed.seconds_alone:.0f} s to end")
    if other == 4 and f"rank {kill.rank} (host" not in killed.log:
        problems.append("the process that was left did not name the killed one")
    return problems


def table(cases: Sequence[Case]) -> str:
    """A row for each kind of run, and all of them."""
    rows = ["| runs | kills | as if not killed | differences | steps lost, most | s until the other process ended |",
            "|---|---:|---:|---:|---:|---:|"]  # fmt: skip
    for kind in (*dict.fromkeys(case.kind for case in cases), "all"):
        chosen = [case for case in cases if kind in (case.kind, "all")]
        good = sum(not case.problems for case in chosen)
        rows.append(
            f"| {kind} | {sum(case.killed for case in chosen)} | {good} of {len(chosen)} | "
            f"{sum(len(case.problems) for case in chosen)} | {max(case.steps_lost for case in chosen)} | "
            f"{max(case.seconds_alone for case in chosen):.0f} |"
        )
    return "\n".join(rows)


if __name__ == "__main__":
    sys.exit(main())
