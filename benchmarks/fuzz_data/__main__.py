"""Damages data sets at random, and sees what the check, training and evaluation make of them.

    python -m benchmarks.fuzz_data --cases 2000 --seed 0
    python -m benchmarks.fuzz_data --case 17 --seed 0      # one case again, with its messages

A toy world in all layouts and own data. Each case damages one file, checks the data set, draws the batches of two
training steps (every `--steps_every`-th case takes the steps, with the toy model) and evaluates it, in a process of
its own with limits of time and memory; then the file is put back. Counted are tracebacks, hangs, processes that died,
files written or read elsewhere, and labels that came out otherwise although the damage shows. Exit code 1 if there
are any.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}

import numpy as np
import torch

from benchmarks import TOY, script_parser
from benchmarks.attack.runner import in_child
from benchmarks.fuzz_data.damage import IMAGES, RESIZING, Damage, damages_for
from benchmarks.fuzz_data.probe import Bench, Seen, probe, wrong_labels
from benchmarks.fuzz_data.world import ALL_LAYOUTS, OUTSIDE, Target, Watch, files_of, make_worlds, restore
from model.checkpoints.load import load_model
from model.lora import mark_trainable
from model.text.format import SequenceFormat
from utils.config.data import DataConfig
from utils.data.mixture import recipe_of
from utils.data.tools.selection import processor_for

PROBLEMS = ("traceback", "hang", "died", "written elsewhere", "read elsewhere", "wrong label")
TIME_LIMIT = 120.0  # seconds of one case; a sound data set takes less than one
# Data sets of which nothing says how large an annotated image was; those whose masks have sizes of their own and are
# stretched to their image.
WITHOUT_SIZES, OWN_SIZES = ("ReasonSeg", "LISA++", "own_jsonl", "openimage"), ("openimage",)
RESULT, OUTPUT = "result.json", "output.txt"


@dataclass(frozen=True, kw_only=True)
class Case:
    """One damage of one file, and what came of it."""

    number: int
    target: str
    damage: str
    file: str
    did: str
    outcome: str = ""  # one of PROBLEMS, or "refused", "left out", "used"
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class Sound:
    """A target before it is damaged."""

    target: Target
    seen: Seen
    files: list[Path]


def main(argv: Sequence[str] | None = None) -> int:
    parser = script_parser("benchmarks.fuzz_data", __doc__)
    parser.add_argument("--cases", type=int, default=2000, help="damages")
    parser.add_argument("--seed", type=int, default=0, help="another seed draws other damages")
    parser.add_argument("--case", type=int, help="number of the only one to run, with its messages")
    parser.add_argument("--only", default="", help="the name of a target or of a damage")
    parser.add_argument(
        "--steps_every", type=int, default=25, help="one case in this many takes real training steps"
    )
    parser.add_argument("--time_limit", type=float, default=TIME_LIMIT, help="seconds of one case")
    parser.add_argument("--out", type=Path, help="write all cases to this JSON file")
    options = parser.parse_args(argv)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fuzz_") as folder:
        numbers = range(options.cases) if options.case is None else [options.case]
        cases = run(Path(folder).resolve(), numbers, options)
    print(table(cases))
    bad = [case for case in cases if case.outcome in PROBLEMS]
    for case in bad:
        print(ascii(f"{case.outcome}: case {case.number}, {case.target}, {case.damage}, {case.file} ({case.did}): "
                    f"{case.detail[:400]}")[1:-1])  # fmt: skip
    print(
        f"{len(cases)} cases of seed {options.seed} in {time.monotonic() - started:.0f} s, {len(bad)} problems"
    )
    if options.out:
        content = {"seed": options.seed, "cases": [asdict(case) for case in cases]}
        options.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 1 if bad else 0


def run(
    folder: Path, numbers: Sequence[int], options: argparse.Namespace, layouts: Sequence[str] = ALL_LAYOUTS
) -> list[Case]:
    """All cases, one after the other, on the layouts named."""
    torch.set_num_threads(1)
    bench = make_bench(with_model=options.steps_every > 0)
    watch = Watch()
    sound = [look(target, bench, watch) for target in make_worlds(folder / "data", layouts)]
    cases: list[Case] = []
    for number in numbers:
        chosen = choose(sound, number, options)
        if chosen is None:
            continue
        real = options.steps_every > 0 and number % options.steps_every == 0
        cases.append(run_case(folder, number, *chosen, bench, watch, options, real_steps=real))
        if cases[-1].outcome in PROBLEMS:
            print(ascii(asdict(cases[-1])), file=sys.stderr, flush=True)
        if options.case is not None or (number + 1) % 100 == 0:
            print(
                f"{number + 1}: {dict(Counter(case.outcome for case in cases))}", file=sys.stderr, flush=True
            )
    return cases


def make_bench(*, with_model: bool) -> Bench:
    """The recipe and the toy model's processor; the model for real steps."""
    format = SequenceFormat.named("paper")
    recipe = recipe_of(DataConfig(), format)
    if not with_model:
        return Bench(
            processor=processor_for(str(TOY / "llava"), format, "llava_v1"), recipe=recipe, model=None
        )
    model, processor = load_model(
        TOY / "llava", vision_tower=str(TOY / "clip"), sam=str(TOY / "sam2"), dtype=torch.float32
    )
    mark_trainable(model)
    return Bench(processor=processor, recipe=recipe, model=model.train())


def look(target: Target, bench: Bench, watch: Watch) -> Sound:
    """A sound target: what it gives, and which files it reads."""
    watch.read.clear()
    with watch.on():
        seen = probe(target, bench)
    problems = [*seen.tracebacks, *seen.refused]
    assert not problems, f"{target.name} is not sound: {problems[:2]}"
    return Sound(target=target, seen=seen, files=files_of(target, watch.read))


def choose(
    sound: Sequence[Sound], number: int, options: argparse.Namespace
) -> tuple[Sound, Path, Damage, np.random.Generator] | None:
    """The target, file and damage of a case: a function of the seed and its number. None if it is not asked for."""
    rng = np.random.default_rng((options.seed, number))
    one = sound[int(rng.integers(len(sound)))]
    # A kind of file as often as another: else most cases would damage images.
    suffixes = sorted({path.suffix for path in one.files})
    suffix = suffixes[int(rng.integers(len(suffixes)))]
    alike = [path for path in one.files if path.suffix == suffix]
    path = alike[int(rng.integers(len(alike)))]
    known = damages_for(path)
    damage = known[int(rng.integers(len(known)))]
    if options.only and options.only not in (one.target.name, damage.name):
        return None
    return one, path, damage, rng


def run_case(
    folder: Path,
    number: int,
    sound: Sound,
    path: Path,
    damage: Damage,
    rng: np.random.Generator,
    bench: Bench,
    watch: Watch,
    options: argparse.Namespace,
    *,
    real_steps: bool,
) -> Case:
    """Damage a file, look at its target in a process of its own, and put the file back."""
    content = path.read_bytes()
    desk = folder / "desk"
    shutil.rmtree(desk, ignore_errors=True)
    desk.mkdir()
    case = Case(
        number=number,
        target=sound.target.name,
        damage=damage.name,
        file=path.relative_to(sound.target.root).as_posix(),
        did="",
    )
    try:
        did = damage.apply(path, rng)
        if did is None:
            return replace(case, outcome="used", did="could not be done to this file")
        case = replace(case, did=did)
        status = in_child(
            lambda: look_again(sound.target, bench, watch, desk, real_steps),
            desk,
            desk / OUTPUT,
            options.time_limit,
        )
    finally:
        restore(path, content)
    output = (desk / OUTPUT).read_text(encoding="utf-8", errors="replace")
    if options.case is not None:
        print(output)
    outcome, detail = judge(sound, path, damage, did, desk, status, output)
    return replace(case, outcome=outcome, detail=detail)


def look_again(target: Target, bench: Bench, watch: Watch, desk: Path, real_steps: bool) -> int:
    """In the process of a case: probe the damaged target, and write down what was seen."""
    watch.read.clear()
    watch.written.clear()
    with watch.on():
        seen = probe(target, bench, real_steps=real_steps)
    np.savez(desk / "labels.npz", *seen.labels.values())
    content = asdict(replace(seen, labels={}))
    told = {
        **content,
        "label_names": list(seen.labels),
        "read": sorted(watch.read),
        "written": sorted(watch.written),
    }
    (desk / RESULT).write_text(json.dumps(told), encoding="utf-8")
    return 0


def judge(
    sound: Sound, path: Path, damage: Damage, did: str, desk: Path, status: int | None, output: str
) -> tuple[str, str]:
    """The outcome of a case, the worst first, and what it was."""
    last = next((line for line in reversed(output.splitlines()) if line.strip()), "")
    if status is None:
        return "hang", last
    if not (desk / RESULT).is_file():
        return "died", f"status {status}: {last}"
    told = json.loads((desk / RESULT).read_text(encoding="utf-8"))
    with np.load(desk / "labels.npz") as stored:
        labels = dict(zip(told["label_names"], stored.values(), strict=True))
    seen = Seen(
        **{key: told[key] for key in ("masks", "absent", "refused", "tracebacks", "num_used")}, labels=labels
    )
    if seen.tracebacks or "Traceback (most recent call last)" in output:
        return "traceback", "; ".join(seen.tracebacks) or last
    if strays := [name for name in told["written"] if is_stray(name, desk)]:
        return "written elsewhere", ", ".join(strays[:3])
    outside = str(desk.parent / "data" / OUTSIDE)
    if strays := [name for name in told["read"] if name.startswith((outside, "/etc/passwd", "/dev/zero"))]:
        return "read elsewhere", ", ".join(strays[:3])
    sizeless = WITHOUT_SIZES if path.suffix in IMAGES else OWN_SIZES
    fits_any_size = sound.target.name in sizeless and damage.name in RESIZING
    shows = damage.shows_in(path, did) and not fits_any_size
    if shows and (wrong := wrong_labels(sound.seen, seen)):
        return "wrong label", "; ".join(wrong[:3])
    if not seen.num_used:
        return "refused", "; ".join(seen.refused[:2])
    return ("left out" if seen.refused or seen.num_used < sound.seen.num_used else "used"), "; ".join(
        seen.refused[:2]
    )


def is_stray(name: str, desk: Path) -> bool:
    """Whether a file that was written belongs to nobody."""
    ours = (str(desk) + os.sep, "/dev/", "/proc/")
    return not name.startswith(ours) and "__pycache__" not in name


def table(cases: Sequence[Case]) -> str:
    """A row for each damage, a column for each outcome."""
    outcomes = ("used", "left out", "refused", *PROBLEMS)
    count = Counter((case.damage, case.outcome) for case in cases)
    names = sorted({case.damage for case in cases})
    rows = [
        (name, str(sum(count[name, o] for o in outcomes)), *(str(count[name, o]) for o in outcomes))
        for name in names
    ]
    total = Counter(case.outcome for case in cases)
    rows.append(("all", str(len(cases)), *(str(total[outcome]) for outcome in outcomes)))
    lines = [("damage", "cases", *outcomes), ("---", *["---:"] * (len(outcomes) + 1)), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    sys.exit(main())
