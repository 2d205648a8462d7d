"""Train the assistant: LoRA, embeddings, projection and SAM's mask decoder.

    deepspeed --master_port=24999 train_ds.py --version=PATH_TO_LLaVA --vision_tower=PATH_TO_CLIP \\
        --vision_pretrained=PATH_TO_SAM --dataset_dir=./dataset --exp_name=LaSagnA-7b
    deepspeed train_ds.py --config configs/lasagna_7b.yaml --lr 1e-4     # a flag wins over the file
    python train_ds.py --config configs/toy.yaml                         # one process, no launcher
    python train_ds.py --config configs/toy.yaml --profile               # where the time goes: runs/EXP/profile

Started again, a run continues where it stopped. Weights go to runs/EXP/ckpt_model, the best to runs/EXP/ckpt_best;
losses to runs/EXP/losses.jsonl and, for TensorBoard, to runs/EXP; what became of the samples to runs/EXP/data.json.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import deepspeed
import torch
from torch.profiler import record_function

from model.checkpoints.load import load_model
from model.errors import UserError
from model.lasagna import LasagnaForConditionalGeneration
from model.lora import add_lora, mark_trainable
from model.processor import LasagnaProcessor
from utils.common.commands import command
from utils.common.distributed import (
    dtype_of,
    is_main_process,
    meeting,
    seed_of_step,
    set_launch_environment,
    world_size,
)
from utils.common.logs import start_logging
from utils.common.paths import check_writable
from utils.common.settings import parse_config
from utils.config.training import TrainConfig
from utils.costs.cost_model import CostModel
from utils.data.base import Dataset
from utils.data.collate import LengthLimit, build_loader
from utils.data.counts import DataCounts
from utils.data.mixture import Mixture, build_train_mixture
from utils.data.types import Batch
from utils.data.val_datasets import open_list
from utils.evaluation.evaluate import evaluate_datasets
from utils.evaluation.prompting import EvaluationSettings
from utils.reports.report import Report
from utils.training.checkpoint import Validated, check_run, resume, save_best, save_checkpoint, save_validated
from utils.training.compile import check_compiler, compile_blocks
from utils.training.deepspeed_config import deepspeed_config
from utils.training.log import (
    TrainLog,
    deciding_score,
    log_failed_validation,
    log_step,
    log_validation,
    open_log,
)
from utils.training.meters import Meters, peak_memory
from utils.training.profile import StepProfiler
from utils.training.sam_cache import SamCache

PROFILE_FOLDER = "profile"
SUMMARY_FILE = "data.json"  # what became of the samples
COUNT_EVERY = 10  # steps between two looks at all processes' unusable items


@command("train_ds.py")
def main(argv: Sequence[str] | None = None) -> int:
    config = parse_config(TrainConfig, argv)
    start_processes(config)
    check_run(config, world_size())
    datasets = open_validation(config)
    model, processor = build_model(config)
    mixture = build_train_mixture(
        config, config.sequence_format, LengthLimit(processor, config.model_max_length)
    )
    sam_cache = open_sam_cache(config, model)
    engine = start_deepspeed(config, model)
    step, validated, counted = resume(engine, config)
    say(f"{mixture.describe()}\nsteps {step} to {config.num_steps}, {count_trainable(model)}")
    train(engine, mixture, datasets, config, step, validated, DataCounts.from_state(counted), sam_cache)
    return 0


def start_processes(config: TrainConfig) -> None:
    """Join the other processes, or be the only one."""
    start_logging()
    if config.num_threads:
        torch.set_num_threads(config.num_threads)
    set_launch_environment()
    if not torch.cuda.is_available():
        # On a CPU, DeepSpeed would probe compilers at every start and compile shared-memory collectives for minutes
        # at the first; only its inference engine uses those, training goes through gloo.
        deepspeed.ops.__compatible_ops__ = {}
    if os.environ["RANK"] == "0":  # before the others wait for it
        check_writable(config.run_dir, "--log_base_dir")
        if config.sam_cache:
            check_writable(config.sam_cache, "--sam_cache")
    with meeting():
        deepspeed.init_distributed("nccl" if torch.cuda.is_available() else "gloo", verbose=False)
    if config.compile:
        check_compiler()
    if config.zero_stage == 3 and world_size() > 1 and not config.no_eval:
        raise UserError(
            "--zero_stage 3 cannot validate on several processes, whose answers differ in length; add --no_eval and "
            "evaluate the merged model with test_sem.py, or take --zero_stage 2"
        )


def open_validation(config: TrainConfig) -> dict[str, Dataset]:
    """The data sets to validate on, opened before the model: a misspelt name should not cost minutes."""
    if config.no_eval:
        return {}
    return open_list(config.val_dataset_list, config.dataset_dir)


def build_model(config: TrainConfig) -> tuple[LasagnaForConditionalGeneration, LasagnaProcessor]:
    """The base with adapters; only what the recipe names will train."""
    model, processor = load_model(
        config.version,
        vision_tower=config.vision_tower or None,
        sam=config.vision_pretrained or None,
        dtype=dtype_of(config.precision),
        attn_implementation=config.attn_implementation,
        format=config.sequence_format,
        prompt=config.conv_type,
        seed=config.seed,
    )
    model.config.loss_weights = config.loss_weights
    model.config.num_all_classes = config.num_all_classes
    torch.manual_seed(config.seed)  # the adapters' first values and dropout
    model.vlm = add_lora(
        model.vlm, config.lora_r, config.lora_alpha, config.lora_dropout, config.lora_pattern
    )
    mark_trainable(model)
    if config.gradient_checkpointing:
        model.set_gradient_checkpointing(True)
    if config.compile:
        compile_blocks(model)
    return model.train(), processor


def open_sam_cache(config: TrainConfig, model: LasagnaForConditionalGeneration) -> SamCache | None:
    """Where SAM's embeddings are kept; asked before ZeRO-3 divides the weights that name them."""
    if not config.sam_cache:
        return None
    cache = SamCache.of(
        model.sam,
        config.sam_cache,
        max_gb=config.sam_cache_gb,
        num_writers=world_size(),
        together=config.zero_stage == 3 and world_size() > 1,
    )
    say(cache.describe())
    return cache


def start_deepspeed(config: TrainConfig, model: LasagnaForConditionalGeneration) -> Any:
    """The engine: optimizer, schedule and ZeRO around the model."""
    engine, *_ = deepspeed.initialize(
        model=model,
        model_parameters=[parameter for parameter in model.parameters() if parameter.requires_grad],
        config=deepspeed_config(config, world_size()),
    )
    return engine


def train(
    engine: Any,
    mixture: Mixture,
    datasets: dict[str, Dataset],
    config: TrainConfig,
    start: int,
    validated: Validated,
    counts: DataCounts,
    sam_cache: SamCache | None,
) -> None:
    """The loop: optimizer steps from `start` on, and after each epoch validation and a checkpoint."""
    meters, costs = Meters(), CostModel.of(config, engine.module.config, on_gpu=engine.device.type == "cuda")
    # Here and not in a step: an iterator that is made draws a number, which the dropout of its step would miss.
    loaded = iter(open_loader(mixture, engine, config, start, sam_cache))
    batches = on_device(loaded, engine, sam_cache, meters, costs)
    profiler = StepProfiler(config.profile if is_main_process() else 0, config.run_dir / PROFILE_FOLDER)
    with open_log(config, start) as log, profiler:
        # What a kill cut off: the weights of an epoch are saved before they are validated.
        if start and start % config.steps_per_epoch == 0 and validated.step < start:
            validated = validate_epoch(engine, datasets, config, start, validated, log)
        for step in range(start + 1, config.num_steps + 1):
            started = time.perf_counter()
            torch.manual_seed(seed_of_step(config.seed, step))  # dropout
            train_step(engine, batches, config.grad_accumulation_steps, meters, counts)
            meters.peak({"memory": peak_memory(engine.device)})
            log_step(step, log, meters, engine.get_lr()[0], started)
            profiler.step()
            ends_epoch = step % config.steps_per_epoch == 0
            if ends_epoch or step % COUNT_EVERY == 0:
                counts.gather()
                counts.check(config.max_bad_fraction)
            if ends_epoch:
                # First, so that nothing is lost if the validation fails.
                save_checkpoint(engine, config, step, counts.state())
                validated = validate_epoch(engine, datasets, config, step, validated, log)
        if datasets and validated.best_step is None:
            say("no validation came to a number: ckpt_best holds the last weights")
            save_best(engine, config, max(start, config.num_steps), None)
    if is_main_process():
        counts.save(config.run_dir / SUMMARY_FILE)
        if config.profile:
            say(profiler.describe())
    say(counts.describe())


def open_loader(
    mixture: Mixture, engine: Any, config: TrainConfig, start: int, sam_cache: SamCache | None
) -> Any:
    """The micro-batches of this process that are left."""
    accumulation = config.grad_accumulation_steps
    if config.pack and not engine.module.can_pack_rows:
        say("conversations are not packed: flash attention cannot mask within a row")
    return build_loader(
        mixture,
        engine.module.processor,
        batch_size=config.batch_size,
        num_batches=max(config.num_steps - start, 0) * accumulation,
        start=start * accumulation,
        rank=torch.distributed.get_rank(),
        world_size=world_size(),
        num_workers=config.workers,
        fast_resize=config.fast_resize,
        pack_rows=config.pack and engine.module.can_pack_rows,
        pin_memory=engine.device.type == "cuda",
        sam_cache=sam_cache,
        max_length=config.model_max_length,
    )


def on_device(
    loaded: Iterator[Batch], engine: Any, sam_cache: SamCache | None, meters: Meters, costs: CostModel
) -> Iterator[Batch]:
    """The loader's batches on this process's device, their work counted, with what the cache knows of SAM."""
    while True:
        with record_function("loader"):
            batch = next(loaded, None)
        if batch is None:
            return
        meters.count(costs.of_batch(batch.inputs))
        batch = batch.to(engine.device)
        if sam_cache is not None:
            with record_function("sam encoder"):
                batch = sam_cache.complete(batch, engine.module.sam)
        yield batch


def train_step(
    engine: Any, batches: Iterator[Batch], accumulation: int, meters: Meters, counts: DataCounts
) -> None:
    """One optimizer step; its losses go into the meters."""
    engine.train()
    for _ in range(accumulation):
        batch = next(batches)
        output = engine(**batch.inputs)
        with record_function("backward"):
            engine.backward(output.loss)
        with record_function("optimizer"):
            engine.step()
        counts.add(batch)
        meters.add(vars(output.losses) | {"skipped": len(batch.skipped), "shortened": batch.num_shortened})


def validate_epoch(
    engine: Any,
    datasets: dict[str, Dataset],
    config: TrainConfig,
    step: int,
    validated: Validated,
    log: TrainLog,
) -> Validated:
    """Validate the weights of a step, keep them if they are the best so far, and note that it is done.

    A validation that fails is logged, and tried again when the run is resumed at this step.
    """
    if not datasets:
        return validated
    try:
        report = validate(engine, datasets, config)
    except Exception as problem:  # whatever it is, days of training do not end for it
        log_failed_validation(step, problem)
        return validated
    log_validation(step, report, log)
    score = deciding_score(report)
    if score is not None and validated.is_beaten_by(score):
        if validated.measures_otherwise(score):
            say(
                f"ckpt_best starts anew with step {step}: the best score so far measured "
                f"{validated.best_measured or 'what was not noted'}, now it is {score.measured}"
            )
        save_best(engine, config, step, score)
        validated = replace(validated, best_step=step, best_score=score.value, best_measured=score.measured)
    validated = replace(validated, step=step)
    save_validated(config, validated)
    return validated


def validate(engine: Any, datasets: dict[str, Dataset], config: TrainConfig) -> Report | None:
    """The report of the model as it is now."""
    if not datasets:
        return None
    settings = EvaluationSettings(
        classes_per_query=config.classes_per_query or None,
        max_samples=config.max_val_samples or None,
        val_batch_size=config.val_batch_size,
        num_pictures=0,
    )
    return evaluate_datasets(
        engine.module, engine.module.processor, datasets, settings, name=config.exp_name, show_progress=False
    )


def count_trainable(model: torch.nn.Module) -> str:
    """How many parameters train, for the log."""
    # `ds_numel` is the whole size of a parameter that ZeRO-3 has divided.
    sizes = [(getattr(p, "ds_numel", p.numel()), p.requires_grad) for p in model.parameters()]
    trainable, total = sum(size for size, trains in sizes if trains), sum(size for size, _ in sizes)
    return f"{trainable / 1e6:.1f} of {total / 1e6:.1f} million parameters train ({trainable / total:.1%})"


def say(text: str) -> None:
    if is_main_process():
        print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
