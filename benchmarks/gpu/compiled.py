"""`--compile` and `--cuda_graphs`: speed of the step, graph breaks, recompilations when lengths change, and whether
recordings give the numbers that they were made from.
"""

from __future__ import annotations

import torch
from torch._dynamo.utils import counters

from benchmarks.gpu.correct import difference, exact_float32
from benchmarks.gpu.machine import Machine
from benchmarks.gpu.results import Results
from benchmarks.gpu.step import (
    AS_RECIPE,
    COMPILED,
    FASTEST,
    MULTIPLE,
    NUM_CONVERSATIONS,
    NUM_IMAGES,
    Switches,
    TrainingStep,
)
from benchmarks.gpu.training import compare_packing
from utils.training.compile import check_compiler

LENGTHS, TINY_LENGTHS = (3, 4, 6, 7), (3,)  # conversations of an image: rows of other lengths
# Conversations and seed of the micro-batches that are compared: two lengths, each twice.
COMPARED = ((5, 0), (3, 1), (5, 2), (3, 3))
DROPOUT = 0.1
SAME = 1e-6  # relative difference of losses and gradients with and without recordings, float32


def measure(machine: Machine, results: Results) -> None:
    """Adds the part "compiled"."""
    check_compiler()
    step = TrainingStep(machine)
    step.switch(AS_RECIPE)  # forgets what another part compiled
    counters.clear()
    step.switch(COMPILED)
    # One length, then another: from there on for all.
    for number in (NUM_CONVERSATIONS, NUM_CONVERSATIONS + 3):
        step.learn(step.batch(NUM_IMAGES, number))
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
    compare_packing(machine, results, step, f", {COMPILED}")


def measure_recorded(machine: Machine, results: Results) -> None:
    """Adds the part "recorded"."""
    step = TrainingStep(machine)
    step.switch(FASTEST)
    compare_packing(machine, results, step, f", {FASTEST}", multiple=MULTIPLE)
    step.switch(AS_RECIPE)
    results.attempt("recorded", "the same numbers", lambda: compare_recorded(machine, results))


def compare_recorded(machine: Machine, results: Results) -> None:
    """Micro-batches of two lengths on the toy model, with dropout: losses and the gradients that they add up to."""
    with exact_float32():
        found = []
        for recorded in (False, True):
            small = Machine(tiny=True, device=machine.device, dtype=torch.float32)
            step = TrainingStep(small, dropout=DROPOUT)
            step.switch(Switches(recorded=recorded))
            losses = []
            for conversations, seed in COMPARED:
                torch.manual_seed(seed)
                batch = step.batch(NUM_IMAGES, conversations, multiple=MULTIPLE, seed=seed)
                loss = step.model(**batch.fields()).loss
                loss.backward()
                losses.append(loss.detach())
            gradients = [p.grad.flatten() for p in step.model.parameters() if p.grad is not None]
            found.append((torch.stack(losses), torch.cat(gradients)))
    (losses, gradients), (recorded_losses, recorded_gradients) = found
    for name, value, expected in (
        ("losses", recorded_losses, losses),
        ("gradients", recorded_gradients, gradients),
    ):
        results.add("recorded", f"{name} of {len(COMPARED)} micro-batches with dropout, difference to those without",
                    difference(value, expected), bar=SAME, at_least=False)  # fmt: skip
