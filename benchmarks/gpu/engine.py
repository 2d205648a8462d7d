"""The step of DeepSpeed's engine: ZeRO 2, ten micro-batches accumulated, clipping and AdamW; its profile, the places
where the host waits, its memory, and what `utils.flops` and `utils.memory` say of it.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import deepspeed
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.gpu.machine import Machine
from benchmarks.gpu.results import Results
from benchmarks.train_step import make_scene
from model.lora import add_lora, mark_trainable
from model.prompts import move_batch
from utils.config import TrainConfig
from utils.costs import CostModel, Work
from utils.deepspeed_config import deepspeed_config
from utils.distributed import set_launch_environment
from utils.flop_formulas import total
from utils.flops import SUSTAINED
from utils.memory import activation_bytes, count_parameters, estimate
from utils.memory import build as build_on_meta
from utils.profiling import parts_table, times_of_parts

NUM_IMAGES, NUM_CONVERSATIONS = 2, 5
BAR_UTILISATION, GOAL_UTILISATION, BAR_MEMORY, BAR_TIME = 0.40, 0.55, 0.10, 0.25
ACCUMULATION = 10
MANY_MASKS, TINY_MANY_MASKS = 16, 3  # conversations of an image in the step whose memory is predicted
KERNELS = 40


class TrainingStep:
    """The 7B model with adapters, its batches, and what they cost."""

    def __init__(self, machine: Machine) -> None:
        model = machine.model
        model.requires_grad_(False)
        if model.llava is model.vlm:
            model.vlm = add_lora(model.vlm)
        mark_trainable(model)
        self.machine, self.model = machine, model.train()
        self.costs = CostModel(shape=model.config, on_gpu=machine.on_gpu)

    def batch(self, images: int, conversations: int, *, packed: bool = True) -> dict[str, Any]:
        """Arguments of forward, on the device."""
        scene = make_scene(self.model.processor, images, conversations)
        batch = self.model.processor.collate(
            scene.images, scene.conversations, scene.owners, masks=scene.masks, pack_rows=packed
        )
        return move_batch(batch, self.machine.device)

    def learn(self, batch: dict[str, Any], embeddings: Tensor | None = None) -> None:
        """Forward and backward; gradients are dropped."""
        if embeddings is not None:
            batch = {**batch, "sam_images": None, "sam_embeddings": embeddings}
        self.model(**batch).loss.backward()
        self.model.zero_grad(set_to_none=True)

    def flops(self, batch: dict[str, Any], *, encoded: bool = False) -> float:
        """Model FLOPs of a micro-batch; `encoded`: SAM's embeddings are there."""
        parts = self.costs.training(Work.of_batch(batch, self.model.config.image_token_id))
        return total(part for name, part in parts.items() if not (encoded and name == "SAM encoder")).model


def measure_engine(machine: Machine, results: Results, step: TrainingStep) -> None:
    """An optimizer step under ZeRO 2, its profile, its waits and its memory."""
    config = TrainConfig(
        version="random", grad_accumulation_steps=ACCUMULATION, precision=precision_of(machine)
    )
    set_launch_environment()
    deepspeed.init_distributed("nccl" if machine.on_gpu else "gloo", verbose=False)
    trained = [parameter for parameter in step.model.parameters() if parameter.requires_grad]
    engine, *_ = deepspeed.initialize(
        model=step.model, model_parameters=trained, config=deepspeed_config(config, 1)
    )
    batch = step.batch(NUM_IMAGES, NUM_CONVERSATIONS)
    turns = 1 if machine.tiny else ACCUMULATION

    def optimizer_step() -> None:
        for _ in range(turns):
            output = engine(**batch)
            with record_function("backward"):
                engine.backward(output.loss)
            with record_function("optimizer"):
                engine.step()

    seconds = machine.seconds(optimizer_step, rounds=3, warm_up=1) / turns
    work = Work.of_batch(batch, step.model.config.image_token_id)
    results.add("training", "micro-batch with its share of the optimizer step: ms", 1e3 * seconds)
    results.add("training", "the same: images/s", NUM_IMAGES / seconds)
    results.add("training", "the same: text tokens/s", work.num_text_tokens / seconds)
    results.add("training", "the same: model FLOPs utilisation", step.flops(batch) / seconds / machine.matrix_rate,
                bar=BAR_UTILISATION, goal=GOAL_UTILISATION)  # fmt: skip
    predicted = seconds_of(machine, step, batch)
    results.add("training", f"utils.flops predicts {1e3 * predicted:.0f} ms; relative error",
                abs(predicted / seconds - 1), bar=BAR_TIME, at_least=False)  # fmt: skip
    profile_step(machine, results, optimizer_step)
    if machine.on_gpu:
        waits = where_the_host_waits(optimizer_step)
        name = f"waits in an optimizer step of {turns} micro-batches, DeepSpeed's included"
        results.add("training", name, sum(waits.values()))
        results.texts["where the host waits"] = "\n".join(f"- {place}: {n}" for place, n in waits.items())
    num_masks = TINY_MANY_MASKS if machine.tiny else MANY_MASKS
    many = step.batch(NUM_IMAGES, num_masks)

    def one() -> None:
        engine.backward(engine(**many).loss)
        engine.step()

    one()
    measured = machine.peak_bytes(lambda: [one() for _ in range(turns)])
    predict_memory(machine, results, step, many, num_masks, measured)


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


def seconds_of(machine: Machine, step: TrainingStep, batch: dict[str, Any]) -> float:
    """What `utils.flops` says of a micro-batch at this card's measured matrix rate."""
    parts = step.costs.training(Work.of_batch(batch, step.model.config.image_token_id))
    return total(parts.values()).total / (SUSTAINED * machine.matrix_rate)


def predict_memory(
    machine: Machine,
    results: Results,
    step: TrainingStep,
    batch: dict[str, Any],
    num_masks: int,
    measured: int,
) -> None:
    """The estimate of `utils.memory` for this very batch."""
    shape = step.model.config
    num_text = batch["input_ids"].shape[1] - shape.vlm_config.image_seq_length
    config = TrainConfig(version="random", model_max_length=num_text, precision=precision_of(machine))
    meta = build_on_meta(config, shape)
    expected = estimate(
        count_parameters(meta), 2, 1, config.precision, activation_bytes(meta, config, num_masks)
    ).total
    results.add("training", f"peak memory under ZeRO 2, {num_masks} masks an image, GB", measured / 1e9)
    limits = {"bar": BAR_MEMORY, "at_least": False} if measured else {}
    results.add("training", f"utils.memory predicts {expected / 1e9:.1f} GB; relative error",
                abs(expected / measured - 1) if measured else 0.0, **limits)  # fmt: skip


def profile_step(machine: Machine, results: Results, run: Callable[[], Any]) -> None:
    """Where the time of an optimizer step goes."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if machine.on_gpu else [])]
    with profile(activities=activities) as profiled:
        run()
        machine.synchronize()
    averages = profiled.key_averages()
    key = "self_device_time_total" if machine.on_gpu else "self_cpu_time_total"
    operators = averages.table(sort_by=key, row_limit=KERNELS, max_name_column_width=70)
    text = f"```\n{parts_table(times_of_parts(averages))}\n```\n\n```\n{operators}\n```"
    results.texts["where an optimizer step goes"] = text
    if machine.on_gpu:
        busy = sum(event.self_device_time_total for event in averages) / 1e6
        results.add("training", "kernels of an optimizer step, s", busy)
