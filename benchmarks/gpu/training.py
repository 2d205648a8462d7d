"""A training step of the recipe's micro-batch: 2 images of 480x640 with 5 referring conversations each.

Model FLOPs utilisation is the step's model FLOPs (`utils.costs.cost_model`; nothing that is recomputed) over its time
and the card's measured matrix rate. Ways are compared by forward and
backward alone; the optimizer is in `benchmarks.gpu.engine`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.gpu.correct import set_attention
from benchmarks.gpu.engine import NUM_CONVERSATIONS, NUM_IMAGES, TrainingStep
from benchmarks.gpu.machine import Machine
from benchmarks.gpu.results import Results
from benchmarks.reference_model import PlainModel, plain_batch

BIG_BATCHES = (4, 8)  # images, to see what a micro-batch of 2 leaves unused
BAR_PACKED = 3.0
ROUNDS = 5
TABLE = "training: forward and backward of a micro-batch"


def measure(machine: Machine, results: Results) -> None:
    """Adds the part "training"."""
    step = TrainingStep(machine)
    compare_ways(machine, results, step)
    count_waits(machine, results, step)


def compare_ways(machine: Machine, results: Results, step: TrainingStep) -> None:
    """Forward and backward in every way, one after the other."""
    packed = step.batch(NUM_IMAGES, NUM_CONVERSATIONS)
    single = step.batch(NUM_IMAGES, NUM_CONVERSATIONS, packed=False)
    with torch.no_grad():
        embeddings = step.model.sam.encode(packed["sam_images"], packed["resized_sizes"])
    tokens = {"packed": packed["input_ids"].numel(), "single rows": single["input_ids"].numel()}
    for name, number in tokens.items():
        results.add("training", f"tokens of the language model, {name}", number)
    step.model.set_gradient_checkpointing(True)
    ways: dict[str, tuple[Callable[[], Any], dict[str, Any], bool]] = {
        "packed": (lambda: step.learn(packed), packed, False),
        "packed, SAM's cache": (lambda: step.learn(packed, embeddings), packed, True),
        "single rows": (lambda: step.learn(single), single, False),
        "single rows, SAM's cache": (lambda: step.learn(single, embeddings), single, True),
    }
    seconds = {name: time_way(machine, results, step, name, *way) for name, way in ways.items()}
    for suffix, limits in (("", {}), (", SAM's cache", {"bar": BAR_PACKED})):
        fast, slow = seconds[f"packed{suffix}"], seconds[f"single rows{suffix}"]
        if fast and slow:
            results.add(
                "training", f"packed against single rows{suffix}, times faster", slow / fast, **limits
            )
    for name in ("eager", *(("flex_attention",) if machine.on_gpu else ())):
        set_attention(step.model, name)
        time_way(machine, results, step, f"packed, {name}", lambda: step.learn(packed), packed, False)
    set_attention(step.model, "sdpa")
    step.model.set_gradient_checkpointing(False)
    for name in ("packed", "packed, SAM's cache"):
        time_way(machine, results, step, f"{name}, no gradient checkpointing", *ways[name])
    step.model.set_gradient_checkpointing(True)
    if not machine.tiny:
        for number in BIG_BATCHES:
            batch = step.batch(number, NUM_CONVERSATIONS)
            time_way(
                machine,
                results,
                step,
                f"packed, {number} images",
                lambda b=batch: step.learn(b),
                batch,
                False,
            )
    results.attempt("training", "the reference's way", lambda: time_reference(machine, results, step, single))


def time_way(
    machine: Machine,
    results: Results,
    step: TrainingStep,
    name: str,
    run: Callable[[], Any],
    batch: dict[str, Any],
    encoded: bool,
) -> float | None:
    """Seconds of forward and backward, with what follows from them; None where the way fails."""
    seconds = results.attempt("training", name, lambda: machine.seconds(run, ROUNDS))
    if seconds is None:
        return None
    results.add_row(
        TABLE,
        {
            "way": name,
            "ms": f"{1e3 * seconds:.1f}",
            "images/s": f"{len(batch['original_sizes']) / seconds:.1f}",
            "model FLOPs utilisation": f"{step.flops(batch, encoded=encoded) / seconds / machine.matrix_rate:.1%}",
            "peak GB": f"{machine.peak_bytes(run) / 1e9:.1f}",
        },
    )
    return seconds


def time_reference(machine: Machine, results: Results, step: TrainingStep, single: dict[str, Any]) -> None:
    """The released recipe's step on the same weights; its arithmetic is `benchmarks.reference_model`."""
    plain, batch = PlainModel(step.model), plain_batch(step.model, single)

    def learn() -> None:
        plain.losses(batch)["total"].backward()
        step.model.zero_grad(set_to_none=True)

    time_way(machine, results, step, "the reference's way", learn, single, False)


def count_waits(machine: Machine, results: Results, step: TrainingStep) -> None:
    """Whether the host waits for the device within forward and backward."""
    if not machine.on_gpu:
        return
    batch = step.batch(NUM_IMAGES, NUM_CONVERSATIONS)
    step.learn(batch)
    torch.cuda.set_sync_debug_mode("error")
    try:
        fine = results.attempt(
            "training", "no wait in forward and backward", lambda: step.learn(batch) or True
        )
    finally:
        torch.cuda.set_sync_debug_mode("default")
    results.add(
        "training", "waits for the device in forward and backward", 0 if fine else 1, bar=0, at_least=False
    )
