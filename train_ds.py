"""Train the assistant: LoRA, embeddings, projection and SAM's mask decoder.

    deepspeed --master_port=24999 train_ds.py --version=PATH_TO_LLaVA \\
      --vision_tower=PATH_TO_CLIP --vision_pretrained=PATH_TO_SAM \\
      --dataset_dir=./dataset --exp_name=LaSagnA-7b
    deepspeed train_ds.py --config configs/lasagna_7b.yaml --lr 1e-4
    python train_ds.py --config configs/toy.yaml            # a single process
    python train_ds.py --config configs/toy.yaml --dry_run  # does it fit?
    python train_ds.py --config configs/toy.yaml --profile  # runs/EXP/profile

Started again, a run continues where it stopped. Weights go to
runs/EXP/ckpt_model, the best to runs/EXP/ckpt_best; losses to
runs/EXP/losses.jsonl and, for TensorBoard, to runs/EXP; what became of the
samples to runs/EXP/data.json. A line for each step has the time left, the
losses (ce: words, bce and dice: masks), text tokens a second, and memory.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace

from utils.common.command_line import answer_at_once, parse_config
from utils.config.training import TrainConfig

if __name__ == "__main__":
    answer_at_once("train_ds.py", TrainConfig, __doc__)  # slow imports follow

import deepspeed
import torch

from model.checkpoints.layouts.base import CHECKPOINT_FOLDER, SETTINGS_FOLDER
from model.checkpoints.load import load_model
from model.encoder_precision import check_frozen
from model.errors import UserError
from model.lasagna import LasagnaForConditionalGeneration
from model.lora import adapt
from model.processor import LasagnaProcessor
from utils.common.commands import command
from utils.common.config_files import as_yaml
from utils.common.distributed import (
    dtype_of,
    is_main_process,
    rendezvous,
    set_launch_environment,
    world_size,
)
from utils.common.folder_lock import RUN_LOCK, folder_lock
from utils.common.logs import start_logging
from utils.common.paths import check_writable
from utils.common.peers import Peers
from utils.common.rendezvous import meet
from utils.data.collate import LengthLimit
from utils.data.index.cache import use_index_cache
from utils.data.mixture import Mixture, build_train_mixture
from utils.data.shards.cache import use_shard_cache
from utils.training.checkpoint import BEST_FOLDER, check_files, check_run, resume, step_size_of
from utils.training.compile import check_compiler, compile_blocks
from utils.training.cuda_graphs import check_cuda_graphs, record_parts
from utils.training.deepspeed_config import deepspeed_config
from utils.training.dry_run import dry_run
from utils.training.engine import Engine
from utils.training.header import header
from utils.training.log import say
from utils.training.loop import train
from utils.training.next_steps import farewell
from utils.training.progress import Progress
from utils.training.sam_cache import SamCache
from utils.training.signals import StopSignals
from utils.training.step_size import accumulation_of
from utils.training.trackers import check_trackers
from utils.training.validation import open_validation
from utils.training.whole_model import WholeModel


@command("train_ds.py")
def main(argv: Sequence[str] | None = None) -> int:
    config = parse_config(TrainConfig, argv, about=__doc__)
    is_first = os.environ.get("RANK", "0") == "0"
    if config.print_config:
        print(as_yaml(config, left_out=("print_config",)) if is_first else "", end="")
        return 0
    if is_first:  # before the others wait for it
        check_first(config)
    holds_folder = is_first and not config.dry_run
    lock = folder_lock(config.run_dir, RUN_LOCK, "--exp_name") if holds_folder else nullcontext()
    with StopSignals() as signals, lock:
        run(config, signals)
    return 0


def run(config: TrainConfig, signals: StopSignals) -> None:
    """Join the other processes, and train with an eye on them."""
    store = start_processes(config)
    cure = "The same command continues from the last save"
    with Peers(store, config.rank_timeout, command="train_ds.py", cure=cure) as peers:
        build_and_train(config, signals, peers)


def build_and_train(config: TrainConfig, signals: StopSignals, peers: Peers) -> None:
    """Build everything, continue from the newest save, and train."""
    check_stage(config)
    use_index_cache(config.index_cache)
    use_shard_cache(config.shard_cache, config.shard_cache_gb)
    if config.dry_run:
        return try_one_step(config)
    found = check_run(config)
    accumulation = accumulation_of(config, world_size(), step_size_of(config, found) if found else None)
    datasets = open_validation(config)
    model, processor = build_model(config)
    mixture = open_mixture(config, processor)
    sam_cache = open_sam_cache(config, model)
    together = config.zero_stage == 3 and world_size() > 1
    whole = WholeModel(model) if together and datasets else None  # before ZeRO-3 divides it
    engine = start_deepspeed(config, model, accumulation)
    progress = resume(engine, config, found)
    peers.where = lambda: f"in step {progress.step}"
    say(header(config, model, mixture, datasets, accumulation, progress))
    train(engine, config, mixture, datasets, progress, sam_cache, signals, whole)
    if is_main_process():
        say(farewell(config, progress))


def try_one_step(config: TrainConfig) -> None:
    """--dry_run: build everything, train one step with a batch of each data set, and save nothing."""
    datasets = open_validation(config)
    model, processor = build_model(config)
    mixture = open_mixture(config, processor)
    accumulation = accumulation_of(config, world_size(), None)
    say(header(config, model, mixture, datasets, accumulation, Progress()))
    engine = start_deepspeed(config, model, len(mixture.sources))
    say(dry_run(engine, config, mixture))


def check_first(config: TrainConfig) -> None:
    """What the first process needs: folders that it can write to, and the trackers' packages."""
    check_trackers(config)
    if config.dry_run:
        return
    saved = [config.run_dir / name for name in (CHECKPOINT_FOLDER, BEST_FOLDER)]
    for folder in (config.run_dir, *saved, *(folder / SETTINGS_FOLDER for folder in saved)):
        check_writable(folder, "--log_base_dir")
    check_files(config.run_dir)
    if config.sam_cache:
        check_writable(config.sam_cache, "--sam_cache")


def start_processes(config: TrainConfig) -> torch.distributed.Store | None:
    """Join the other processes, with which this one then shares a store, or be the only one."""
    start_logging()
    if config.num_threads:
        torch.set_num_threads(config.num_threads)
    set_launch_environment()
    if not torch.cuda.is_available():
        # On a CPU, DeepSpeed would probe compilers at every start and compile shared-memory collectives for minutes
        # at the first; only its inference engine uses those, training goes through gloo.
        deepspeed.ops.__compatible_ops__ = {}
        # oneDNN generates code for each operation and shape: 2 ms a time, a third of a step of the toy world where
        # the 1,024 kernels that it keeps are too few for batches of different lengths.
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "4096")
    with rendezvous():
        store = meet(config.rank_timeout)
        deepspeed.init_distributed("nccl" if torch.cuda.is_available() else "gloo", verbose=False)
    return store


def check_stage(config: TrainConfig) -> None:
    """What this machine and this number of processes cannot do."""
    if config.compile:
        check_compiler()
    if config.cuda_graphs:
        check_cuda_graphs()


def check_head_stage(model: LasagnaForConditionalGeneration, config: TrainConfig) -> None:
    """UserError for a concept head under ZeRO-3, whose processes must call the parts equally often."""
    if model.sam.has_presence and config.zero_stage == 3 and world_size() > 1:
        raise UserError(
            f"--mask_head {model.config.mask_head} does not go with --zero_stage 3 on several processes; take "
            "--zero_stage 2"
        )


def build_model(config: TrainConfig) -> tuple[LasagnaForConditionalGeneration, LasagnaProcessor]:
    """The base model with adapters; only the parameters of the recipe are trainable."""
    model, processor = load_model(
        config.version,
        vision_tower=config.vision_tower or None,
        sam=config.vision_pretrained or None,
        dtype=dtype_of(config.precision),
        attn_implementation=config.attn_implementation,
        format=config.sequence_format,
        prompt=config.prompt_template,
        seed=config.seed,
        min_image_tokens=config.min_image_tokens,
        max_image_tokens=config.max_image_tokens,
        mask_head=config.mask_head or None,
        encoder_precision=config.encoder_precision,
    )
    check_head_stage(model, config)
    model.config.loss_weights = config.loss_weights
    model.config.num_all_classes = config.num_all_classes
    if config.image_aspect_ratio:
        model.set_image_aspect_ratio(config.image_aspect_ratio)
    if config.spatial_prompt:
        model.add_spatial_prompt(config.num_latent_prompts, seed=config.seed)
    torch.manual_seed(config.seed)  # the adapters' first values and dropout
    adapt(model, new_ids=processor.new_token_ids, **config.adapters)
    if config.encoder_precision:
        check_frozen(model)
    if config.gradient_checkpointing:
        model.set_gradient_checkpointing(True)
    if config.compile:
        compile_blocks(model)
    return model.train(), processor


def open_mixture(config: TrainConfig, processor: LasagnaProcessor) -> Mixture:
    """The stream of training samples, none of which is longer than --model_max_length."""
    limit = LengthLimit(processor, config.model_max_length)
    return build_train_mixture(config, config.sequence_format, limit)


def open_sam_cache(config: TrainConfig, model: LasagnaForConditionalGeneration) -> SamCache | None:
    """The cache of SAM's embeddings, made before ZeRO-3 shards the weights that its key is computed from."""
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


def start_deepspeed(config: TrainConfig, model: LasagnaForConditionalGeneration, accumulation: int) -> Engine:
    """The engine: optimizer, schedule and ZeRO around the model; `accumulation` micro-batches make a step."""
    config = replace(config, grad_accumulation_steps=accumulation)
    engine, *_ = deepspeed.initialize(
        model=model,
        model_parameters=[parameter for parameter in model.parameters() if parameter.requires_grad],
        config=deepspeed_config(config, world_size()),
    )
    if config.cuda_graphs:
        record_parts(model)  # with weights where they stay
    return engine


if __name__ == "__main__":
    sys.exit(main())
