"""Trains for thousands of steps and looks whether anything grows: memory, open files, threads, shared memory.

    python -m benchmarks.long_run --steps 2000       # about 15 minutes on one idle core
    python -m benchmarks.long_run --steps 2000 --out runs/long_run.json

train_ds.py runs on the toy world with a loading process, saves, and validations. What it takes is read from outside,
from /proc, and a line is fitted to the second half of the run, when everything has been built. Ctrl-C ends it early,
with the table of the steps so far. Exit code 1 if a slope is above its bar.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from benchmarks import ROOT, TOY, TOY_PARTS, script_parser
from utils.common.processes import without_launcher
from utils.toy.world import WorldConfig, make_world

SHARED = Path("/dev/shm")
FLAGS = (
    f"--version={TOY}/llava", *TOY_PARTS,
    "--dataset=sem_seg||refer_seg||reason_seg", "--sem_seg_data=ade20k", "--refer_seg_data=refcoco",
    "--num_all_classes=8", "--num_expressions=2", "--num_questions=2", "--batch_size=1",
    "--grad_accumulation_steps=1", "--warmup_steps=2", "--workers=1", "--num_threads=1", "--exp_name=run",
    "--val_dataset_list=ade20k", "--max_val_samples=1",
)  # fmt: skip


@dataclass(frozen=True)
class Look:
    """What a run took at one moment, its loading process included."""

    step: int
    memory_mb: float  # resident, of all processes
    files: float  # open file handles
    threads: float
    shared_mb: float  # in /dev/shm
    shared_files: float


BARS = {
    "memory_mb": 20.0,
    "files": 1.0,
    "threads": 1.0,
    "shared_mb": 1.0,
    "shared_files": 1.0,
}  # per 1,000 steps


def main(argv: Sequence[str] | None = None) -> int:
    parser = script_parser("benchmarks.long_run", __doc__)
    parser.add_argument("--steps", type=int, default=2000, help="training steps")
    parser.add_argument("--every", type=int, default=10, help="steps between two looks")
    parser.add_argument("--out", default="", help="JSON file for the results")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="long_run_") as temporary:
        folder = Path(temporary)
        make_world(WorldConfig(out=str(folder / "dataset"), num_images=8, layouts="ade20k,refer,reason,coco"))
        began = time.monotonic()
        looks = watch(folder, options.steps, options.every)
    slopes = {name: slope(looks, name) for name in BARS}
    print(table(looks, slopes))
    print(
        f"{looks[-1].step} of {options.steps} steps in {time.monotonic() - began:.0f} s, {len(looks)} looks"
    )
    if options.out:
        result = {"steps": looks[-1].step, "slopes": slopes, "looks": [asdict(look) for look in looks]}
        Path(options.out).write_text(json.dumps(result, indent=1) + "\n")
    return 1 if any(slopes[name] > bar for name, bar in BARS.items()) else 0


def watch(folder: Path, steps: int, every: int) -> list[Look]:
    """Trains in `folder`, with a look every so many steps."""
    epoch = max(steps // 8, 1)
    command = [sys.executable, str(ROOT / "train_ds.py"), *FLAGS, f"--dataset_dir={folder / 'dataset'}",
               f"--log_base_dir={folder}", "--epochs=8", f"--steps_per_epoch={epoch}",
               f"--save_every_steps={max(epoch // 4, 1)}"]  # fmt: skip
    environment = without_launcher(os.environ) | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    before = shared()
    looks: list[Look] = []
    with (folder / "log.txt").open("w") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
        try:
            while process.poll() is None:
                step = num_lines(folder / "run" / "losses.jsonl")
                if step and step >= (looks[-1].step + every if looks else 1):
                    looks.append(look_at(process.pid, step, before))
                time.sleep(0.05)
        except KeyboardInterrupt:  # what has been seen so far says something, too
            process.kill()
            return looks
    if process.returncode:
        raise RuntimeError((folder / "log.txt").read_text()[-4000:])
    return looks


def look_at(pid: int, step: int, shared_before: tuple[float, int]) -> Look:
    """What a process and its children take now."""
    memory = files = threads = 0.0
    for one in (pid, *children_of(pid)):
        try:
            memory += (
                int(Path(f"/proc/{one}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
            )
            files += len(os.listdir(f"/proc/{one}/fd"))
            threads += len(os.listdir(f"/proc/{one}/task"))
        except OSError:  # it has just ended
            continue
    now = shared()
    return Look(step, memory, files, threads, now[0] - shared_before[0], now[1] - shared_before[1])


def children_of(pid: int) -> list[int]:
    """Children and their children."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += [int(child) for child in task.read_text().split()]
        except OSError:
            continue
    return [one for child in found for one in (child, *children_of(child))]


def shared() -> tuple[float, int]:
    """Megabytes and files in shared memory."""
    sizes = []
    for path in SHARED.rglob("*") if SHARED.is_dir() else ():
        try:
            sizes.append(path.stat().st_size)
        except OSError:
            continue
    return sum(sizes) / 1e6, len(sizes)


def num_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def slope(looks: Sequence[Look], name: str) -> float:
    """Growth per 1,000 steps in the second half of the looks, whatever saves and validations take for a moment.

    The median of the slopes between any two looks (Theil and Sen).
    """
    half = looks[len(looks) // 2 :]
    if len(half) < 2:
        return 0.0
    steps, values = (
        np.array([getattr(look, field) for look in half], dtype=float) for field in ("step", name)
    )
    first, second = np.triu_indices(len(half), k=1)
    return float(1000 * np.median((values[second] - values[first]) / (steps[second] - steps[first])))


def table(looks: Sequence[Look], slopes: dict[str, float]) -> str:
    """A row for each quantity: at the start, half-way, at the end, its slope and its bar."""
    moments = looks[0], looks[len(looks) // 2], looks[-1]
    lines = [f"| | {' | '.join(f'step {look.step}' for look in moments)} | per 1,000 steps | bar |",
             "|---|---:|---:|---:|---:|---:|"]  # fmt: skip
    for name, bar in BARS.items():
        values = " | ".join(f"{getattr(look, name):.4g}" for look in moments)
        lines.append(f"| {name} | {values} | {slopes[name]:.2f} | {bar:g} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
