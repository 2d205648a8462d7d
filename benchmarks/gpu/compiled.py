"""`--compile`: speed of the step, graph breaks in the layers, and recompilations when lengths change."""

from __future__ import annotations

from torch._dynamo.utils import counters

from benchmarks.gpu.engine import NUM_CONVERSATIONS, NUM_IMAGES, TrainingStep, switch_compiled
from benchmarks.gpu.machine import Machine
from benchmarks.gpu.results import Results
from benchmarks.gpu.training import compare_packing
from utils.training.compile import check_compiler

LENGTHS, TINY_LENGTHS = (3, 4, 6, 7), (3,)  # conversations of an image: rows of other lengths


def measure(machine: Machine, results: Results) -> None:
    """Adds the part "compiled"."""
    check_compiler()
    step = TrainingStep(machine)
    step.model.set_gradient_checkpointing(False)
    counters.clear()
    switch_compiled(step.model, True, machine)
    batches = [step.batch(NUM_IMAGES, number) for number in (NUM_CONVERSATIONS, NUM_CONVERSATIONS + 3)]
    for batch in batches:  # one length, then another: from there on for all
        step.learn(batch)
    breaks = sum(counters["graph_break"].values())
    results.add("compiled", "graph breaks in the layers", breaks, bar=0, at_least=False)
    if breaks:
        results.texts["graph breaks"] = "\n".join(f"- {reason}" for reason in counters["graph_break"])
    graphs = counters["stats"]["unique_graphs"]
    lengths = TINY_LENGTHS if machine.tiny else LENGTHS
    for number in lengths:
        step.learn(step.batch(NUM_IMAGES, number))
    results.add("compiled", f"graphs compiled after warm-up, {len(lengths)} more lengths",
                counters["stats"]["unique_graphs"] - graphs, bar=0, at_least=False)  # fmt: skip
    compare_packing(machine, results, step, ", compiled, no gradient checkpointing")
    switch_compiled(step.model, False, machine)
    step.model.set_gradient_checkpointing(True)
