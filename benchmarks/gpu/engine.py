"""The step of DeepSpeed's engine: ten micro-batches accumulated, clipping and AdamW; eager and compiled, with and
without gradient checkpointing; its profile, the places where the host waits, its memory, and what `utils.costs.flops`
and `utils.costs.memory` say of it.
"""

from __future__ import annotations

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
from benchmarks.scenes import make_scene
from model.inputs import Levels, ModelInputs
from model.lasagna import LasagnaForConditionalGeneration
from model.lora import add_lora, mark_trainable
from utils.common.distributed import set_launch_environment
from utils.config.training import TrainConfig
from utils.costs.activations import activation_bytes
from utils.costs.cost_model import CostModel, Work
from utils.costs.flop_formulas import total
from utils.costs.memory import build as build_on_meta
from utils.costs.memory import count_parameters, estimate
from utils.costs.prediction import SUSTAINED
from utils.training.compile import compile_blocks, undo_compilation
from utils.training.deepspeed_config import deepspeed_config
from utils.training.profile import PARTS, parts_table, times_of_parts

NUM_IMAGES, NUM_CONVERSATIONS = 2, 5
BAR_UTILISATION, GOAL_UTILISATION, BAR_MEMORY, BAR_TIME = 0.40, 0.55, 0.10, 0.25
ACCUMULATION = 10
MANY_MASKS, TINY_MANY_MASKS = 16, 3  # conversations of an image in the step whose memory is predicted
KERNELS, PROFILED = 40, 2
SWITCHES = {  # compiled, gradient checkpointing
    "eager, gradient checkpointing": (False, True),
    "eager, no gradient checkpointing": (False, False),
    "compiled, no gradient checkpointing": (True, False),
}


class TrainingStep:
    """The 7B model with adapters, its batches, and what they cost."""

    def __init__(self, machine: Machine) -> None:
        model = machine.model
        model.requires_grad_(False)
        if model.base_vlm is model.vlm:
            model.vlm = add_lora(model.vlm)
        mark_trainable(model)
        self.machine, self.model = machine, model.train()
        self.costs = CostModel(shape=model.config, on_gpu=machine.on_gpu)

    def batch(self, images: int, conversations: int, *, packed: bool = True) -> ModelInputs:
        """What the model reads, on the device."""
        scene = make_scene(self.model.processor, images, conversations)
        inputs = self.model.processor.collate(
            scene.images, scene.conversations, scene.owners, masks=scene.masks, pack_rows=packed
        )
        return inputs.to(self.machine.device)

    def learn(self, batch: ModelInputs, embeddings: Levels | None = None) -> None:
        """Forward and backward; gradients are dropped."""
        if embeddings is not None:
            batch = replace(batch, sam_images=None, sam_embeddings=embeddings)
        self.model(**batch.fields()).loss.backward()
        self.model.zero_grad(set_to_none=True)

    def flops(self, batch: ModelInputs, *, encoded: bool = False) -> float:
        """Model FLOPs of a micro-batch; `encoded`: SAM's embeddings are there."""
        parts = self.costs.training(Work.of_batch(batch, self.model.config.image_token_id))
        return total(part for name, part in parts.items() if not (encoded and name == "SAM encoder")).model


def measure(machine: Machine, results: Results) -> None:
    """Adds the part "engine": an optimizer step, its profile, its waits and its memory."""
    step = TrainingStep(machine)
    turns = 1 if machine.tiny else ACCUMULATION
    set_launch_environment()
    deepspeed.init_distributed("nccl" if machine.on_gpu else "gloo", verbose=False)
    # The recipe's stage, then the one that reduces gradients once a step and not once a micro-batch.
    with running_engine(machine, step, 2) as engine:
        many = step.batch(NUM_IMAGES, TINY_MANY_MASKS if machine.tiny else MANY_MASKS)
        step.model.set_gradient_checkpointing(True)
        take(engine, many, turns)  # the first step has no optimizer states yet
        measured = machine.peak_bytes(lambda: take(engine, many, turns))
        predict_memory(machine, results, step, many, measured)
        taken = {
            f"ZeRO 2, {name}": time_switch(machine, results, step, engine, f"ZeRO 2, {name}", *switches)
            for name, switches in SWITCHES.items()
        }
    with running_engine(machine, step, 1) as engine:
        name = "ZeRO 1, compiled, no gradient checkpointing"
        taken[name] = time_switch(machine, results, step, engine, name, True, False)
        judge(machine, results, step, taken)
        results.save()
        look_inside(machine, results, step, engine, turns)
    switch_compiled(step.model, False, machine)


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


def time_switch(
    machine: Machine,
    results: Results,
    step: TrainingStep,
    engine: Any,
    name: str,
    compiled: bool,
    checkpointing: bool,
) -> float:
    """Seconds of a micro-batch with its share of the optimizer step; NaN where it fails."""
    turns = 1 if machine.tiny else ACCUMULATION
    batch = step.batch(NUM_IMAGES, NUM_CONVERSATIONS)
    step.model.set_gradient_checkpointing(checkpointing)
    switch_compiled(step.model, compiled, machine)
    seconds = results.attempt(
        "engine", name, lambda: machine.seconds(lambda: take(engine, batch, turns), rounds=2, warm_up=1)
    )
    if seconds is None:
        return float("nan")
    seconds /= turns
    work = Work.of_batch(batch, step.model.config.image_token_id)
    results.add_row(
        "engine: a micro-batch with its share of the optimizer step",
        {
            "way": name,
            "ms": f"{1e3 * seconds:.1f}",
            "images/s": f"{NUM_IMAGES / seconds:.1f}",
            "text tokens/s": f"{work.num_text_tokens / seconds:.0f}",
            "model FLOPs utilisation": f"{step.flops(batch) / seconds / machine.matrix_rate:.1%}",
        },
    )
    return seconds


def judge(machine: Machine, results: Results, step: TrainingStep, taken: dict[str, float]) -> None:
    """The bars are for the fastest way."""
    batch = step.batch(NUM_IMAGES, NUM_CONVERSATIONS)
    best = min(taken, key=lambda name: taken[name])
    utilisation = step.flops(batch) / taken[best] / machine.matrix_rate
    results.add(
        "engine", f"model FLOPs utilisation, {best}", utilisation, bar=BAR_UTILISATION, goal=GOAL_UTILISATION
    )
    parts = step.costs.training(Work.of_batch(batch, step.model.config.image_token_id))
    predicted = total(parts.values()).total / (SUSTAINED * machine.matrix_rate)
    results.add("engine", f"{best}: utils.costs.flops predicts {1e3 * predicted:.0f} ms; relative error",
                abs(predicted / taken[best] - 1), bar=BAR_TIME, at_least=False)  # fmt: skip


def switch_compiled(model: LasagnaForConditionalGeneration, on: bool, machine: Machine) -> None:
    """Compiles the blocks that --compile compiles, or has them run as they are and forgets what was compiled."""
    if not on:
        undo_compilation(model)
        torch._dynamo.reset()  # guards of other settings would be tried before each call
    elif model.sam.mask_decoder._compiled_call_impl is None:
        compile_blocks(model, "eager" if machine.tiny else "inductor")


def look_inside(machine: Machine, results: Results, step: TrainingStep, engine: Any, turns: int) -> None:
    """Where the time of some micro-batches goes, and where the host waits in an optimizer step."""
    batch = step.batch(NUM_IMAGES, NUM_CONVERSATIONS)
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


def predict_memory(
    machine: Machine, results: Results, step: TrainingStep, batch: ModelInputs, measured: int
) -> None:
    """The estimate of `utils.costs.memory` for this very batch."""
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
