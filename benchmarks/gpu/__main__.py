"""`make gpu`: what only a GPU can show - that the numbers are right there, how fast it is, and what was predicted.

    python -m benchmarks.gpu --out runs/gpu              # at most 8 minutes on one CUDA GPU with 80 GB
    python -m benchmarks.gpu --tiny --out runs/gpu_tiny  # every part on a CPU, small: only shows that it runs
    python -m benchmarks.gpu --parts card,training       # some parts

Weights are random and made on the device; nothing is downloaded. gpu.json and gpu.md in --out are written after each
part, so that what is finished is kept when the run is stopped; the table comes last. A part that fails leaves its
traceback there, and the others go on; the exit code is 1 then, or where a bar is missed.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from benchmarks import script_parser
from benchmarks.gpu import answers, compiled, correct, engine, evaluation, runs, sam, training
from benchmarks.gpu.machine import Machine
from benchmarks.gpu.results import Results
from model.errors import UserError

PACKAGES = ("torch", "transformers", "peft", "deepspeed", "numpy", "triton", "flash-attn", "bitsandbytes")


def card(machine: Machine, results: Results) -> None:
    """The two rates that the other parts are compared with."""
    matrix, copy = machine.measure_rates()
    results.add("card", f"matrix product, {machine.dtype}, TFLOP/s", matrix / 1e12)
    results.add("card", "copy on the device, read and written, TB/s", copy / 1e12)


Part = Callable[[Machine, Results], None]
PARTS: dict[str, Part] = {
    "card": card,
    "correct": correct.measure,
    "runs": runs.measure,
    "sam": sam.measure,
    "answers": answers.measure,
    "evaluation": evaluation.measure,
    "training": training.measure,
    "compiled": compiled.measure,
    "recorded": compiled.measure_recorded,
    "engine": engine.measure,
}


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    wanted = arguments.parts.split(",")
    try:
        machine = Machine.found(tiny=arguments.tiny)
    except UserError as problem:
        print(f"benchmarks.gpu: {problem}", file=sys.stderr)
        return 2
    results = Results(folder=arguments.out, about=about(machine))
    started = time.monotonic()
    for name in wanted:
        spent = time.monotonic() - started
        if spent > arguments.seconds:
            results.problems[name] = (
                f"not started: {spent:.0f} s were spent, --seconds is {arguments.seconds:g}\n"
            )
            continue
        print(f"{name} ...", flush=True)
        began = time.monotonic()
        results.attempt(name, "all of it", lambda part=PARTS[name]: part(machine, results))
        machine.free()
        results.seconds[name] = time.monotonic() - began
        results.save()
    print(results.page())
    return 1 if results.problems or (results.missed and not arguments.tiny) else 0


def about(machine: Machine) -> dict[str, str]:
    """The machine and the versions that decide its numbers."""
    found = {"device": machine.name, "python": sys.version.split()[0]}
    if machine.on_gpu:
        properties = torch.cuda.get_device_properties(machine.device)
        found["device"] += f", {properties.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = script_parser("benchmarks.gpu", __doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="folder of gpu.json and gpu.md")
    parser.add_argument("--parts", default=",".join(PARTS), help="what to measure, separated by commas")
    parser.add_argument("--tiny", action="store_true", help="small sizes on a CPU; nothing is judged")
    parser.add_argument("--seconds", type=float, default=420.0, help="no part is started after so long")
    arguments = parser.parse_args(argv)
    if unknown := set(arguments.parts.split(",")) - set(PARTS):
        parser.error(f"--parts: unknown {', '.join(sorted(unknown))}; known: {', '.join(PARTS)}")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
