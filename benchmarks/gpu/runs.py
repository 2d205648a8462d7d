"""`train_ds.py` itself on the toy world: ZeRO 0 to 3, bf16, fp16 with its scaler, resumed, cached, compiled, with
CUDA graphs.

Each run is a process of its own. Correctness, not speed: on a GPU they run at the same time.
"""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import train_ds
from benchmarks import ROOT
from benchmarks.gpu.machine import Machine
from benchmarks.gpu.results import Results
from utils.common.processes import without_launcher
from utils.toy.world import WorldConfig, make_world

LAYOUTS = "ade20k,coco,cityscapes,refer,reason"  # those that configs/toy.yaml names
STEPS = 2  # of an epoch; the longest run has two epochs
REFERENCE = "ZeRO 0"
FP32 = ("--precision=fp32",)
# name: the flags of one start after the other, and how far its losses may be from those of REFERENCE (relative).
RUNS: dict[str, tuple[tuple[tuple[str, ...], ...], float]] = {
    REFERENCE: ((("--zero_stage=0", *FP32),), 0.0),
    "ZeRO 1": ((("--zero_stage=1", *FP32),), 1e-4),
    "ZeRO 2": ((("--zero_stage=2", *FP32),), 1e-4),
    "ZeRO 3": ((("--zero_stage=3", *FP32),), 1e-4),
    "resumed": ((("--zero_stage=0", *FP32, "--epochs=1"), ("--zero_stage=0", *FP32)), 1e-4),
    "rows not packed": ((("--zero_stage=0", *FP32, "--no_pack"),), 1e-4),
    "flex attention": ((("--zero_stage=0", *FP32, "--attn_implementation=flex_attention"),), 1e-4),
    "gradient checkpointing": ((("--zero_stage=0", *FP32, "--gradient_checkpointing=true"),), 1e-4),
    # Another run fills the cache.
    "SAM's cache": (
        (
            ("--zero_stage=0", *FP32, "--sam_cache={cache}", "--exp_name=fills_the_cache"),
            ("--zero_stage=0", *FP32, "--sam_cache={cache}"),
        ),
        1e-4,
    ),
    "compiled": ((("--zero_stage=0", *FP32, "--compile"),), 1e-3),
    "CUDA graphs": ((("--zero_stage=0", *FP32, "--cuda_graphs"),), 1e-4),
    "CUDA graphs, resumed": (
        (
            ("--zero_stage=2", *FP32, "--cuda_graphs", "--epochs=1"),
            ("--zero_stage=2", *FP32, "--cuda_graphs"),
        ),
        1e-4,
    ),
    "bf16, compiled, CUDA graphs, SAM's cache": (
        (("--zero_stage=1", "--precision=bf16", "--compile", "--cuda_graphs", "--sam_cache={cache}"),),
        0.05,
    ),
    "bf16": ((("--zero_stage=2", "--precision=bf16"),), 0.05),
    "fp16 with its scaler": ((("--zero_stage=2", "--precision=fp16"),), 0.05),
}
TINY = (REFERENCE, "resumed")
SECONDS = 240  # after which a run is given up


def measure(machine: Machine, results: Results) -> None:
    """Adds the part "runs"."""
    names = TINY if machine.tiny else tuple(RUNS)
    with tempfile.TemporaryDirectory(prefix="gpu-runs-") as place:
        folder = Path(place)
        make_world(WorldConfig(out=str(folder / "dataset"), num_images=8, layouts=LAYOUTS))
        # One after the other on a CPU, where each would take all threads.
        with ThreadPoolExecutor(max_workers=1 if machine.tiny else len(names)) as pool:
            trained = pool.map(lambda name: train(name, folder, in_process=machine.tiny), names)
            losses = dict(zip(names, trained, strict=True))
    for name, (found, log) in losses.items():
        if not found:
            results.problems[f"runs: {name}"] = log[-3000:]
    reference = losses[REFERENCE][0]
    for name, (found, _) in losses.items():
        if found and reference and name != REFERENCE:
            off = largest_difference(found, reference)
            about = f"{name}: losses of {2 * STEPS} steps, largest relative difference to {REFERENCE}"
            results.add("runs", about, off, bar=RUNS[name][1], at_least=False)


def train(name: str, folder: Path, *, in_process: bool) -> tuple[list[float], str]:
    """The total losses of a run, none where it failed, and what it printed."""
    run = folder / "runs" / re.sub(r"\W", "_", name)
    common = [
        "--config", str(ROOT / "configs" / "toy.yaml"), "--dataset_dir", str(folder / "dataset"),
        "--log_base_dir", str(run.parent), "--exp_name", run.name, "--no_eval", "--batch_size=2",
        "--epochs=2", f"--steps_per_epoch={STEPS}", "--lora_dropout=0", "--num_threads=1",
    ]  # fmt: skip
    log = ""
    for flags in RUNS[name][0]:
        argv = [*common, *(flag.format(cache=folder / "sam_cache") for flag in flags)]
        code, said = start(argv, in_process=in_process)
        log += said
        if code:
            return [], log
    lines = (run / "losses.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["total"] for line in lines if "total" in json.loads(line)], log


def start(argv: Sequence[str], *, in_process: bool) -> tuple[int, str]:
    """Exit code and output of train_ds.py, started in the repository, whose paths the configuration names."""
    if in_process:
        before = Path.cwd()
        os.chdir(ROOT)
        try:
            return train_ds.main(argv), ""
        finally:
            os.chdir(before)
    command = [sys.executable, str(ROOT / "train_ds.py"), *argv]
    # Each is a launch of its own, whatever this process has joined.
    environment = without_launcher(os.environ) | {"OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, timeout=SECONDS, check=False, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
    except subprocess.TimeoutExpired as problem:
        return 1, f"given up after {SECONDS} s\n{problem.stdout or ''}"
    return done.returncode, done.stdout


def largest_difference(found: Sequence[float], expected: Sequence[float]) -> float:
    """Of losses, step by step and relative; infinite where one is missing or not a number."""
    if len(found) != len(expected) or not all(map(math.isfinite, found)):
        return math.inf
    return max(abs(a / b - 1) for a, b in zip(found, expected, strict=True))
