"""The step of DeepSpeed's engine: ten micro-batches accumulated, clipping and AdamW; eager and compiled, with and
without gradient checkpointing; its profile, the places where the host waits, its memory, and what `utils.costs.flops`
and `utils.costs.memory` say of it.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import deepspeed
import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.gpu.machine import Machine
from benchmarks.gpu.results import Results
from benchmarks.gpu.step import (
    AS_RECIPE,
    BIG_BATCHES,
    COMPILED,
    FASTEST,
    MULTIPLE,
    NUM_CONVERSATIONS,
    NUM_IMAGES,
    Switches,
    TrainingStep,
)
from model.inputs import ModelInputs
from utils.common.distributed import set_launch_environment
from utils.config.training import TrainConfig
from utils.costs.activations import activation_bytes
from utils.costs.assumptions import SUSTAINED
from utils.costs.cost_model import Work
from utils.costs.flop_formulas import total
from utils.costs.memory import build as build_on_meta
from utils.costs.memory import count_parameters, estimate
from utils.training.deepspeed_config import deepspeed_config
from utils.training.profile import PARTS, parts_table, times_of_parts

BAR_UTILISATION, GOAL_UTILISATION, BAR_MEMORY, BAR_TIME = 0.40, 0.55, 0.10, 0.25
ACCUMULATION = 10
MANY_MASKS, TINY_MANY_MASKS = 16, 3  # conversations of an image in the step whose memory is predicted
KERNELS, PROFILED = 40, 2
WAYS = {2: (AS_RECIPE, COMPILED, FASTEST), 1: (COMPILED, FASTEST)}  # by ZeRO stage


def measure(machine: Machine, results: Results) -> None:
    """Adds the part "engine": an optimizer step, its profile, its waits and its memory."""
    step = TrainingStep(machine)
    turns = 1 if machine.tiny else ACCUMULATION
    set_launch_environment()
    deepspeed.init_distributed("nccl" if machine.on_gpu else "gloo", verbose=False)
    taken: dict[tuple[int, Switches], float] = {}
    # The recipe's stage, then the one that reduces gradients once a step and not once a micro-batch.
    for stage, ways in WAYS.items():
        with running_engine(machine, step, stage) as engine:
            if stage == 2:
                predict_memory(machine, results, step, engine, turns)
            for switches in ways[-1:] if machine.tiny else ways:
                step.switch(switches)
                taken[stage, switches] = time_engine(machine, results, step, engine, stage, switches)
            if stage == 1:
                judge(machine, results, step, taken)
                for images in () if machine.tiny else BIG_BATCHES:
                    time_engine(machine, results, step, engine, stage, switches, images)
                results.save()
                look_inside(machine, results, step, engine, turns)
    step.switch(AS_RECIPE)


@contextmanager
def running_engine(machine: Machine, step: TrainingStep, zero_stage: int) -> Iterator[Any]:
    """DeepSpeed's engine around the model, as train_ds.py makes it; its hooks are gone afterwards."""
    config = TrainConfig(
        version="random",
        grad_accumulation_steps=ACCUMULATION,
        precision=precision_of(machine),
        zero_stage=zero_stage,
    )
    trained = [parameter for parameter in step.model.parameters() if parameter.requires_grad]
    engine, *_ = deepspeed.initialize(
        model=step.model, model_parameters=trained, config=deepspeed_config(config, 1)
    )
    try:
        yield engine
    finally:
        engine.destroy()
        step.model.zero_grad(set_to_none=True)


def take(engine: Any, batch: ModelInputs, turns: int) -> None:
    """Micro-batches as train_ds.py takes them; ACCUMULATION of them are one optimizer step."""
    for _ in range(turns):
        output = engine(**batch.fields())
        with record_function("backward"):
            engine.backward(output.loss)
        with record_function("optimizer"):
            engine.step()


def time_engine(
    machine: Machine,
    results: Results,
    step: TrainingStep,
    engine: Any,
    stage: int,
    switches: Switches,
    images: int = NUM_IMAGES,
) -> float:
    """Seconds of a micro-batch with its share of the optimizer step; NaN where it fails."""
    turns = 1 if machine.tiny else ACCUMULATION
    name = way(stage, switches) + (f", {images} images" if images != NUM_IMAGES else "")
    batch = step.batch(images, NUM_CONVERSATIONS, multiple=MULTIPLE if switches.recorded else 1)
    seconds = results.attempt(
        "engine", name, lambda: machine.seconds(lambda: take(engine, batch, turns), rounds=2, warm_up=1)
    )
    if seconds is None:
        return float("nan")
    seconds /= turns
    plain = step.batch(images, NUM_CONVERSATIONS)  # padding is no work of the model
    work = Work.of_batch(plain, step.model.config.image_token_id)
    results.add_row(
        "engine: a micro-batch with its share of the optimizer step",
        {
            "way": name,
            "ms": f"{1e3 * seconds:.1f}",
            "images/s": f"{images / seconds:.1f}",
            "text tokens/s": f"{work.num_text_tokens / seconds:.0f}",
            "model FLOPs utilisation": f"{step.flops(plain) / seconds / machine.matrix_rate:.1%}",
            "peak GB": f"{machine.peak_bytes(lambda: take(engine, batch, turns)) / 1e9:.1f}",
        },
    )
    return seconds


def way(stage: int, switches: Switches) -> str:
    """What a row of the table is called."""
    return f"ZeRO {stage}, {switches}"


def judge(
    machine: Machine, results: Results, step: TrainingStep, taken: dict[tuple[int, Switches], float]
) -> None:
    """The bars are for the fastest way."""
    batch = step.batch(NUM_IMAGES, NUM_CONVERSATIONS)
    seconds, stage, switches = min(
        ((seconds, *which) for which, seconds in taken.items() if not math.isnan(seconds)),
        key=lambda found: found[0],
    )
    name, utilisation = way(stage, switches), step.flops(batch) / seconds / machine.matrix_rate
    results.add(
        "engine", f"model FLOPs utilisation, {name}", utilisation, bar=BAR_UTILISATION, goal=GOAL_UTILISATION
    )
    costs = replace(step.costs, gradient_checkpointing=switches.checkpointing)
    parts = costs.training(Work.of_batch(batch, step.model.config.image_token_id))
    predicted = total(parts.values()).total / (SUSTAINED * machine.matrix_rate)
    results.add("engine", f"{name}: utils.costs.flops predicts {1e3 * predicted:.0f} ms; relative error",
                abs(predicted / seconds - 1), bar=BAR_TIME, at_least=False)  # fmt: skip


def look_inside(machine: Machine, results: Results, step: TrainingStep, engine: Any, turns: int) -> None:
    """Where the time of some micro-batches goes, and where the host waits in an optimizer step."""
    batch = step.batch(NUM_IMAGES, NUM_CONVERSATIONS, multiple=MULTIPLE)
    if machine.on_gpu:
        waits = where_the_host_waits(lambda: take(engine, batch, turns))
        results.add("engine", "waits in an optimizer step, DeepSpeed's", sum(waits.values()))
        results.texts["where the host waits"] = "\n".join(f"- {place}: {n}" for place, n in waits.items())
    profile_step(machine, results, lambda: take(engine, batch, PROFILED))


def where_the_host_waits(run: Callable[[], Any]) -> Counter[str]:
    """How often the host waits for the GPU at each line of code."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            run()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return Counter(
        f"{found.filename.split('site-packages/')[-1]}:{found.lineno}"
        for found in caught
        if "synchron" in str(found.message)
    )


def precision_of(machine: Machine) -> str:
    return "bf16" if machine.on_gpu else "fp32"


def predict_memory(machine: Machine, results: Results, step: TrainingStep, engine: Any, turns: int) -> None:
    """The estimate of `utils.costs.memory` for a batch with many masks, against what it takes."""
    batch = step.batch(NUM_IMAGES, TINY_MANY_MASKS if machine.tiny else MANY_MASKS)
    step.model.set_gradient_checkpointing(True)
    take(engine, batch, turns)  # the first step has no optimizer states yet
    measured = machine.peak_bytes(lambda: take(engine, batch, turns))
    shape = step.model.config
    num_masks = len(batch.seg_images) // NUM_IMAGES
    num_text = batch.input_ids.shape[1] - shape.vlm_config.image_seq_length
    config = TrainConfig(version="random", model_max_length=num_text, precision=precision_of(machine))
    meta = build_on_meta(config, shape)
    count, activations = count_parameters(meta), activation_bytes(meta, config, num_masks)
    expected = estimate(count, 2, 1, config.precision, activations).total
    results.add("engine", f"peak memory, ZeRO 2, {num_masks} masks an image, GB", measured / 1e9)
    limits = {"bar": BAR_MEMORY, "at_least": False} if measured else {}
    results.add("engine", f"utils.costs.memory predicts {expected / 1e9:.1f} GB; relative error",
                abs(expected / measured - 1) if measured else 0.0, **limits)  # fmt: skip


def profile_step(machine: Machine, results: Results, run: Callable[[], Any]) -> None:
    """Where the time goes."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if machine.on_gpu else [])]
    with profile(activities=activities) as profiled:
        run()
        machine.synchronize()
    averages = profiled.key_averages()
    key = "self_device_time_total" if machine.on_gpu else "self_cpu_time_total"
    operators = averages.table(sort_by=key, row_limit=KERNELS, max_name_column_width=70)
    text = f"```\n{parts_table(times_of_parts(averages))}\n```\n\n```\n{operators}\n```"
    results.texts[f"where {PROFILED} micro-batches go"] = text
    if machine.on_gpu:
        kernels = (event for event in averages if event.device_type == DeviceType.CUDA)
        busy = sum(event.self_device_time_total for event in kernels if event.key not in PARTS) / 1e6
        results.add("engine", "kernels of a micro-batch, ms", 1e3 * busy / PROFILED)
