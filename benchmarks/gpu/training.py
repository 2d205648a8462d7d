"""A training step of the recipe's micro-batch: 2 images of 480x640 with 5 referring conversations each.

Model FLOPs utilisation is the step's model FLOPs (`utils.costs.cost_model`; nothing that is recomputed) over its time
and the card's measured matrix rate. Ways are compared by forward and
backward alone; the optimizer is in `benchmarks.gpu.engine`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks.gpu.machine import Machine
from benchmarks.gpu.results import Results
from benchmarks.gpu.step import AS_RECIPE, BIG_BATCHES, NUM_CONVERSATIONS, NUM_IMAGES, TrainingStep
from benchmarks.reference_model import PlainModel, plain_batch
from model.inputs import ModelInputs

BAR_PACKED = 3.0
ROUNDS = 3
IN_A_ROW = 4  # micro-batches between two waits for the device: a training step has no wait between its own
TABLE = "training: forward and backward of a micro-batch"


def measure(machine: Machine, results: Results) -> None:
    """Adds the part "training"."""
    step = TrainingStep(machine)
    step.switch(AS_RECIPE)
    compare_ways(machine, results, step)
    count_waits(machine, results, step)


def compare_ways(machine: Machine, results: Results, step: TrainingStep) -> None:
    """Forward and backward in every way, one after the other."""
    packed = step.batch(NUM_IMAGES, NUM_CONVERSATIONS)
    single = step.batch(NUM_IMAGES, NUM_CONVERSATIONS, packed=False)
    for name, batch in (("packed", packed), ("single rows", single)):
        results.add("training", f"tokens of the language model, {name}", batch.input_ids.numel())
    compare_packing(machine, results, step, "")
    for name in ("eager", *(("flex_attention",) if machine.on_gpu else ())):
        step.model.backbone.attend_with(name)
        time_way(machine, results, step, f"packed, {name}", lambda: step.learn(packed), packed, False)
    step.model.backbone.attend_with("sdpa")
    results.attempt("training", "the reference's way", lambda: time_reference(machine, results, step, single))
    step.model.set_gradient_checkpointing(False)
    compare_packing(machine, results, step, ", no gradient checkpointing")
    step.model.set_gradient_checkpointing(True)
    if not machine.tiny:
        for number in BIG_BATCHES:
            batch = step.batch(number, NUM_CONVERSATIONS)
            way = f"packed, {number} images"
            time_way(machine, results, step, way, lambda b=batch: step.learn(b), batch, False)


def compare_packing(
    machine: Machine, results: Results, step: TrainingStep, suffix: str, *, multiple: int = 1
) -> None:
    """Packed rows against single ones, with SAM's encoder in the step and with its embeddings from the cache.

    Rows are padded to a multiple of `multiple`; the model's FLOPs are those without padding.
    """
    batches, plain = (
        {
            name: step.batch(NUM_IMAGES, NUM_CONVERSATIONS, packed=name == "packed", multiple=each)
            for name in ("packed", "single rows")
        }
        for each in (multiple, 1)
    )
    first = batches["packed"]
    with torch.no_grad():
        embeddings = step.model.sam.encode(first.sam_images, first.resized_sizes)
    for cached in (True,) if machine.tiny else (False, True):
        seconds = {}
        for name, batch in batches.items():
            run = partial(step.learn, batch, embeddings if cached else None)
            way = f"{name}{suffix}{', SAM embeddings cached' if cached else ''}"
            seconds[name] = time_way(machine, results, step, way, run, plain[name], cached)
        if all(seconds.values()):
            about = f"packed against single rows{suffix}{', SAM embeddings cached' if cached else ''}"
            ratio = seconds["single rows"] / seconds["packed"]
            results.add(
                "training", f"{about}, times faster", ratio, **({"bar": BAR_PACKED} if cached else {})
            )


def time_way(
    machine: Machine,
    results: Results,
    step: TrainingStep,
    name: str,
    run: Callable[[], Any],
    batch: ModelInputs,
    encoded: bool,
) -> float | None:
    """Seconds of forward and backward, with what follows from them; None where the way fails."""
    turns = 1 if machine.tiny else IN_A_ROW

    def run_all() -> None:
        for _ in range(turns):
            run()

    seconds = results.attempt("training", name, lambda: machine.seconds(run_all, ROUNDS, warm_up=1))
    if seconds is None:
        return None
    seconds /= turns
    results.add_row(
        TABLE,
        {
            "way": name,
            "ms": f"{1e3 * seconds:.1f}",
            "images/s": f"{batch.num_images / seconds:.1f}",
            "model FLOPs utilisation": f"{step.flops(batch, encoded=encoded) / seconds / machine.matrix_rate:.1%}",
            "peak GB": f"{machine.peak_bytes(run) / 1e9:.1f}",
        },
    )
    return seconds


def time_reference(machine: Machine, results: Results, step: TrainingStep, single: ModelInputs) -> None:
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
