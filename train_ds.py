"""Train the assistant: LoRA, embeddings, projection and SAM's mask decoder.

    deepspeed --master_port=24999 train_ds.py --version=PATH_TO_LLaVA --vision_tower=PATH_TO_CLIP \\
        --vision_pretrained=PATH_TO_SAM --dataset_dir=./dataset --exp_name=LaSagnA-7b
    deepspeed train_ds.py --config configs/lasagna_7b.yaml --lr 1e-4     # a flag wins over the file
    python train_ds.py --config configs/toy.yaml                         # one process, no launcher

Started again, a run continues where it stopped. Weights go to runs/EXP/ckpt_model, the best to runs/EXP/ckpt_best;
losses to runs/EXP/losses.jsonl and, for TensorBoard, to runs/EXP; what became of the samples to runs/EXP/data.json.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import deepspeed
import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from model.lasagna import LasagnaForConditionalGeneration
from model.loading import load_model
from model.lora import add_lora, mark_trainable
from model.processor import LasagnaProcessor
from utils.asking import EvaluationSettings
from utils.checkpoint import check_run, forget_after, resume, save_best, save_checkpoint
from utils.config import TrainConfig
from utils.data.base import Dataset
from utils.data.collate import LengthLimit, build_loader
from utils.data.counts import DataCounts
from utils.data.mixture import Mixture, build_train_mixture
from utils.data.registry import parse_val_list
from utils.deepspeed_config import deepspeed_config
from utils.distributed import dtype_of, is_main_process, seed_of_step, set_launch_environment, world_size
from utils.evaluate import evaluate_datasets, open_datasets
from utils.logs import one_line, start_logging
from utils.meters import Meters
from utils.report import Report, Result
from utils.settings import parse_config

LOSSES_FILE = "losses.jsonl"
SUMMARY_FILE = "data.json"  # what became of the samples
COUNT_EVERY = 10  # steps between two looks at all processes' unusable items
# The number that a data set is judged by: the first of these that it has.
SCORES = (
    ("semantic", "miou"),
    ("referring", "ciou"),
    ("generalized", "ciou"),
    ("reasoning", "giou"),
    ("vqa", "exact_match"),
)


def main(argv: Sequence[str] | None = None) -> int:
    try:
        config = parse_config(TrainConfig, argv)
        start_processes(config)
        check_run(config, world_size())
        datasets = open_validation(config)
        model, processor = build_model(config)
        mixture = build_train_mixture(
            config, config.sequence_format, LengthLimit(processor, config.model_max_length)
        )
        engine = start_deepspeed(config, model)
        step, best_score, counted = resume(engine, config)
        say(f"{mixture.describe()}\nsteps {step} to {config.num_steps}, {count_trainable(model)}")
        train(engine, mixture, datasets, config, step, best_score, DataCounts.from_state(counted))
    except (ValueError, FileNotFoundError) as problem:
        print(f"train_ds.py: {one_line(problem)}", file=sys.stderr)
        return 2
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
    deepspeed.init_distributed("nccl" if torch.cuda.is_available() else "gloo", verbose=False)
    if config.zero_stage == 3 and world_size() > 1 and not config.no_eval:
        raise ValueError(
            "--zero_stage 3 cannot validate on several processes, whose answers differ in length; add --no_eval and "
            "evaluate the merged model with test_sem.py, or take --zero_stage 2"
        )


def open_validation(config: TrainConfig) -> dict[str, Dataset]:
    """The data sets to validate on, opened before the model: a misspelt name should not cost minutes."""
    if config.no_eval:
        return {}
    return open_datasets(
        [str(entry) for entry in parse_val_list(config.val_dataset_list)], config.dataset_dir
    )


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
    torch.manual_seed(config.seed)  # the adapters' first values and dropout
    model.vlm = add_lora(
        model.vlm, config.lora_r, config.lora_alpha, config.lora_dropout, config.lora_pattern
    )
    mark_trainable(model)
    if config.gradient_checkpointing:
        model.llava.model.language_model.activation_checkpointing_enable({"use_reentrant": False})
    return model.train(), processor


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
    best_score: float | None,
    counts: DataCounts,
) -> None:
    """The loop: optimizer steps from `start` on, and after each epoch validation and a checkpoint."""
    batches = iter(open_loader(mixture, engine, config, start))
    meters = Meters()
    with open_logs(config, start) as writer, open_bar(config, start) as bar:
        for step in range(start + 1, config.num_steps + 1):
            torch.manual_seed(seed_of_step(config.seed, step))  # dropout
            train_step(engine, batches, config.grad_accumulation_steps, meters, counts)
            log_step(step, engine, meters, bar, writer, config)
            ends_epoch = step % config.steps_per_epoch == 0
            if ends_epoch or step % COUNT_EVERY == 0:
                counts.gather()
                counts.check(config.max_bad_fraction)
            if ends_epoch:
                # First, so that nothing is lost if the validation fails.
                save_checkpoint(engine, config, step, counts.state())
                report = validate(engine, datasets, config)
                log_validation(step, report, writer)
                score = deciding_score(report)
                if score is not None and (best_score is None or score > best_score):
                    best_score = score
                    save_best(engine, config, step, score)
    if is_main_process():
        counts.save(config.run_dir / SUMMARY_FILE)
    say(counts.describe())


def open_logs(config: TrainConfig, start: int) -> AbstractContextManager[SummaryWriter | None]:
    """The run's logs, without what an interrupted start wrote of the steps that come again."""
    if not is_main_process():
        return nullcontext()
    forget_after(config.run_dir / LOSSES_FILE, start)
    # Resolved, as the writer's thread opens its file again and again.
    return SummaryWriter(str(config.run_dir.resolve()), purge_step=start + 1)


def open_bar(config: TrainConfig, start: int) -> tqdm:
    """Optimizer steps done and left, on the first process."""
    return tqdm(total=config.num_steps, initial=start, desc="training", disable=not is_main_process())


def open_loader(mixture: Mixture, engine: Any, config: TrainConfig, start: int) -> Any:
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
    )


def train_step(engine: Any, batches: Any, accumulation: int, meters: Meters, counts: DataCounts) -> None:
    """One optimizer step; its losses go into the meters."""
    engine.train()
    for _ in range(accumulation):
        batch = next(batches).to(engine.device)
        output = engine(**batch.inputs)
        engine.backward(output.loss)
        engine.step()
        counts.add(batch)
        meters.add(vars(output.losses) | {"skipped": len(batch.skipped), "shortened": batch.num_shortened})


def log_step(
    step: int, engine: Any, meters: Meters, bar: tqdm, writer: SummaryWriter | None, config: TrainConfig
) -> None:
    """Averages over one step and all processes: progress bar, TensorBoard, losses.jsonl."""
    losses = meters.means()
    meters.reset()
    bar.update()
    if writer is None:
        return
    shown = {
        "loss": losses["total"],
        "ce": losses["cross_entropy"],
        "bce": losses["mask_bce"],
        "dice": losses["dice"],
    }
    bar.set_postfix({name: f"{value:.3f}" for name, value in shown.items()}, refresh=False)
    losses["lr"] = engine.get_lr()[0]
    for name, value in losses.items():
        writer.add_scalar(f"train/{name}", value, step)
    with (config.run_dir / LOSSES_FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps({"step": step, **losses}) + "\n")


def validate(engine: Any, datasets: dict[str, Dataset], config: TrainConfig) -> Report | None:
    """The report of the model as it is now."""
    if not datasets:
        return None
    settings = EvaluationSettings(
        classes_per_query=config.classes_per_query or config.num_all_classes,
        max_samples=config.max_val_samples or None,
        val_batch_size=config.val_batch_size,
        num_pictures=0,
    )
    return evaluate_datasets(
        engine.module, engine.module.processor, datasets, settings, name=config.exp_name, show_progress=False
    )


def score_of(result: Result) -> tuple[str, float] | None:
    """The name and the value of a data set's number."""
    for section, metric in SCORES:
        if section in result.sections:
            return f"{section}.{metric}", float(result.sections[section][metric])
    return None


def deciding_score(report: Report | None) -> float | None:
    """The number of the first data set: the weights with the highest are kept as the best."""
    score = score_of(report.results[0]) if report else None
    return None if score is None or math.isnan(score[1]) else score[1]


def log_validation(step: int, report: Report | None, writer: SummaryWriter | None) -> None:
    """Every number to TensorBoard, one of each data set to the terminal."""
    if report is None or writer is None:
        return
    shown = []
    for result in report.results:
        for section, numbers in result.sections.items():
            for name, value in numbers.items():
                writer.add_scalar(f"val/{result.dataset}/{section}/{name}", value, step)
        if score := score_of(result):
            shown.append(f"{result.dataset} {score[0]} {score[1]:.3f}")
    tqdm.write(f"step {step}: {', '.join(shown)}")


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
