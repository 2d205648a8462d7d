"""`--compile`: speed of the step, graph breaks in the layers, and recompilations when lengths change."""

from __future__ import annotations

import torch
from torch._dynamo.utils import counters

from benchmarks.gpu.engine import NUM_CONVERSATIONS, NUM_IMAGES, TrainingStep, switch_compiled
from benchmarks.gpu.machine import Machine
from benchmarks.gpu.results import Results
from benchmarks.gpu.training import time_way
from utils.training.compile import check_compiler

LENGTHS, TINY_LENGTHS = (3, 4, 6, 7), (3,)  # conversations of an image: rows of other lengths


def measure(machine: Machine, results: Results) -> None:
    """Adds the part "compiled"."""
    check_compiler()
    step = TrainingStep(machine)
    torch._dynamo.reset()
    counters.clear()
    switch_compiled(step.model, True, "eager" if machine.tiny else "inductor")
    batches = [step.batch(NUM_IMAGES, number) for number in (NUM_CONVERSATIONS, NUM_CONVERSATIONS + 3)]
    for batch in batches:  # one length, then another: from there on for all
        step.learn(batch)
    results.add(
        "compiled", "graph breaks in the layers", sum(counters["graph_break"].values()), bar=0, at_least=False
    )
    graphs = counters["stats"]["unique_graphs"]
    lengths = TINY_LENGTHS if machine.tiny else LENGTHS
    for number in lengths:
        step.learn(step.batch(NUM_IMAGES, number))
    results.add("compiled", f"graphs compiled after warm-up, {len(lengths)} more lengths",
                counters["stats"]["unique_graphs"] - graphs, bar=0, at_least=False)  # fmt: skip
    if counters["graph_break"]:
        results.texts["graph breaks"] = "\n".join(f"- {reason}" for reason in counters["graph_break"])
    single = step.batch(NUM_IMAGES, NUM_CONVERSATIONS, packed=False)
    time_way(machine, results, step, "single rows, compiled", lambda: step.learn(single), single, False)
    time_way(machine, results, step, "packed, compiled", lambda: step.learn(batches[0]), batches[0], False)
    step.model.set_gradient_checkpointing(False)
    name = "packed, compiled, no gradient checkpointing"
    time_way(machine, results, step, name, lambda: step.learn(batches[0]), batches[0], False)
    step.model.set_gradient_checkpointing(True)
    switch_compiled(step.model, False)
