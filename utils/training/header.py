"""What a training run says before its first step: model, data, batch, precision, validation, and where things go."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from model.lasagna import LasagnaForConditionalGeneration
from utils.common.distributed import world_size
from utils.common.terminal import printable
from utils.config.training import TrainConfig
from utils.data.base import Dataset
from utils.data.mixture import Mixture
from utils.training.progress import Progress

WIDTH, INDENT = 80, 12  # columns: of a line, and before its text
# What the name of a parameter says about the part that it belongs to; the first that it holds counts.
PARTS = {
    ".lora_": "LoRA",
    "token_rows.": "rows of the new tokens",
    ".embed_tokens.": "embedding",
    "lm_head.": "head",
    "seg_projector.": "projection",
    "spatial_prompt.": "spatial prompt",
    "sam.": "mask decoder",
}


def header(
    config: TrainConfig,
    model: LasagnaForConditionalGeneration,
    mixture: Mixture,
    datasets: Mapping[str, Dataset],
    accumulation: int,
    progress: Progress,
) -> str:
    """The lines, of at most 80 columns unless a path is longer.

    Args:
        datasets: those to validate on; may be empty.
        accumulation: micro-batches of one process in an optimizer step.
    """
    sections = {
        "model": model_lines(config, model),
        "trains": [trainable_line(model)],
        "data": source_lines(mixture),
        "batch": [batch_line(config.batch_size, accumulation, world_size())],
        "steps": [steps_line(config, progress)],
        "attention": [attention_line(config, model)],
        "precision": [precision_line(config)],
        "validation": [validation_line(config, datasets)],
        "output": output_lines(config),
    }
    return "\n".join(line for name, lines in sections.items() for line in _section(name, lines))


def _section(name: str, lines: Sequence[str]) -> list[str]:
    """The lines behind a name, wrapped between words."""
    wrapped = [
        part
        for line in lines
        for part in textwrap.wrap(
            printable(line),
            WIDTH - INDENT,
            subsequent_indent="  ",
            break_long_words=False,
            break_on_hyphens=False,
        )
    ]
    return [f"{name if number == 0 else '':{INDENT}}{text}" for number, text in enumerate(wrapped)]


def model_lines(config: TrainConfig, model: LasagnaForConditionalGeneration) -> list[str]:
    """What is trained: the base, the mask decoder, what is beyond the paper."""
    decoder = config.vision_pretrained or "that of the base"
    lines = [
        f"{config.version} ({model.config.vlm_config.model_type})",
        f"mask decoder: {decoder} ({model.config.sam_settings.kind})",
    ]
    if model.spatial_prompt is not None:
        latent = model.config.num_latent_prompts
        lines.append("with a spatial prompt" + (f" and {latent} latent prompts" if latent else ""))
    return lines


def trainable_line(model: nn.Module) -> str:
    """The number of trainable parameters, and that of each part."""
    sizes: Counter[str] = Counter()
    total = 0
    for name, parameter in model.named_parameters():
        # `ds_numel` is the size of a parameter that ZeRO-3 has sharded.
        size = getattr(parameter, "ds_numel", parameter.numel())
        total += size
        if parameter.requires_grad:
            part = next((title for key, title in PARTS.items() if key in name), name.split(".")[0])
            sizes[part] += size
    parts = ", ".join(f"{part} {millions(size)}" for part, size in sizes.items())
    share = sizes.total() / max(total, 1)
    return f"{millions(sizes.total())} of {millions(total)} parameters ({share:.1%}): {parts}"


def millions(number: int) -> str:
    """4,123,456 -> "4.12 M": three significant digits."""
    scaled, unit = (number / 1e9, "B") if number >= 1e9 else (number / 1e6, "M")
    digits = 2 if scaled < 10 else 1 if scaled < 100 else 0
    return f"{scaled:.{digits}f} {unit}" if number >= 1e4 else f"{number:,}"


def source_lines(mixture: Mixture) -> list[str]:
    """A line for each data set: its part of the draws, its size, what was left out of it."""
    lines = []
    for source, rate in zip(mixture.sources, mixture.rates, strict=True):
        dropped = f", {len(source.dropped):,} dropped" if source.dropped else ""
        items = counted(source.num_items, "item")
        lines.append(f"{rate:5.1%} {source.name}|{source.split}, {items}{dropped}")
    return lines


def batch_line(batch_size: int, accumulation: int, num_processes: int) -> str:
    """How many images an optimizer step sees, and how they are divided."""
    images = counted(batch_size * accumulation * num_processes, "image")
    processes = counted(num_processes, "process", "processes")
    return f"{images} a step: {batch_size} in a micro-batch x {accumulation} accumulated x {processes}"


def counted(number: int, word: str, words: str = "") -> str:
    """A number with its word, which is one or several."""
    return f"{number:,} {word if number == 1 else words or f'{word}s'}"


def steps_line(config: TrainConfig, progress: Progress) -> str:
    """From which step to which, and what the learning rate does meanwhile."""
    start = f"continues after step {progress.step} of " if progress.step else ""
    if progress.step >= config.num_steps:
        start = f"nothing is left to train after step {progress.step}; --epochs may be raised. Steps: "
    epochs = f"{counted(config.epochs, 'epoch')} of {counted(config.steps_per_epoch, 'step')}"
    rate = f"learning rate up to {config.lr:g} in {counted(config.warmup_steps, 'step')}, then down to 0"
    return f"{start}{config.num_steps} ({epochs}); {rate}"


def attention_line(config: TrainConfig, model: LasagnaForConditionalGeneration) -> str:
    """The kernel of the language model's attention, and whether it packs."""
    packs = config.pack and model.can_pack_rows
    return (
        f"{model.attention}; the conversations of an image {'share one row' if packs else 'have a row each'}"
    )


def precision_line(config: TrainConfig) -> str:
    """Numbers and memory: dtype, ZeRO, what is recomputed, the device."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    checkpointing = "on" if config.gradient_checkpointing else "off"
    compiled = (", compiled" if config.compile else "") + (", CUDA graphs" if config.cuda_graphs else "")
    encoders = f", image encoders {config.encoder_precision}" if config.encoder_precision else ""
    numbers = f"{config.precision}{encoders}, ZeRO {config.zero_stage}"
    return f"{numbers}, gradient checkpointing {checkpointing}{compiled}; {device}"


def validation_line(config: TrainConfig, datasets: Mapping[str, Dataset]) -> str:
    """What the model is validated on, and which number decides."""
    if not datasets:
        return "none: the newest weights are kept"
    most = config.max_val_samples
    shown = ", ".join(
        f"{entry} ({min(len(dataset), most or len(dataset)):,})" for entry, dataset in datasets.items()
    )
    return f"after each epoch: {shown}; {next(iter(datasets))} decides which weights are the best"


def output_lines(config: TrainConfig) -> list[str]:
    """Where weights, losses and curves go."""
    times = []
    if config.save_every_minutes:
        times.append(f"every {config.save_every_minutes:g} minutes")
    if config.save_every_steps:
        times.append(f"every {config.save_every_steps} steps")
    folder = config.run_dir
    lines = [
        f"{folder / 'ckpt_model'}: weights, {', '.join([*times, 'after each epoch'])}",
        f"{folder / 'losses.jsonl'}: losses of every step",
    ]
    if "tensorboard" in config.trackers:
        lines.append(f"curves: tensorboard --logdir {config.log_base_dir}")
    if others := [name for name in config.trackers if name != "tensorboard"]:
        lines.append(
            f"curves also to {' and '.join(others)}" if len(lines) > 2 else f"curves: {', '.join(others)}"
        )
    return lines
