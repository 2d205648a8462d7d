"""GPU memory that a training configuration takes, for ZeRO 0 to 3.

    python -m utils.costs.memory --config configs/lasagna_7b.yaml --gpus 8
    python -m utils.costs.memory --config configs/lasagna_7b.yaml --gpus 4 \\
      --batch_size 1 --masks 40

From the configuration alone: the model is built of tensors that have a shape
and no memory. Where base model, CLIP or SAM are not there, their published
sizes are taken (utils/costs/model_sizes.py). Formulas and their sources:
docs/checkpoints.md.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from utils.common.command_line import answer_at_once, parse_config
from utils.costs.settings import MemoryConfig

if __name__ == "__main__":
    answer_at_once("utils.costs.memory", MemoryConfig, __doc__)  # slow imports follow

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from model.choices import BF16
from model.config import LasagnaConfig
from model.encoder_precision import encoders_of
from model.lasagna import LasagnaForConditionalGeneration
from model.lora import adapt
from model.text.tokens import wanted_tokens
from utils.common.commands import command
from utils.common.distributed import dtype_of
from utils.config.training import TrainConfig
from utils.costs.activations import activation_bytes
from utils.costs.model_sizes import model_config
from utils.costs.vision_flops import num_image_tokens

STAGES = (0, 1, 2, 3)
CARDS = (24, 40, 80)  # GB = 10^9 bytes; what a card of 24 GiB has beyond that goes to the CUDA context

# DeepSpeed's: reduce_bucket_size of utils/training/deepspeed_config.py on a GPU and on a CPU, and the default of
# stage3_max_live_parameters; all count parameters.
REDUCE_BUCKET, REDUCE_BUCKET_OF_CPU = 500_000_000, 50_000_000
MAX_LIVE = 1_000_000_000


@dataclass(frozen=True, kw_only=True)
class Count:
    """Parameters of the model, adapters included."""

    total: int
    trainable: int
    cast: int = 0  # of image encoders in bfloat16, whatever the precision of the rest


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Bytes on each GPU while training."""

    stage: int
    weights: int
    gradients: int
    optimizer: int
    buffers: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.buffers + self.activations

    @property
    def card(self) -> int | None:
        """The smallest of CARDS that holds it, None where none does."""
        return next((card for card in CARDS if self.total <= card * 10**9), None)


@command("utils.costs.memory")
def main(argv: Sequence[str] | None = None) -> int:
    config = parse_config(MemoryConfig, argv, about=__doc__)
    shape = model_config(config)
    model = build(config, shape)
    count = count_parameters(model, config.encoder_precision)
    activations = activation_bytes(model, config, config.masks)
    rows = [estimate(count, stage, config.gpus, config.precision, activations) for stage in STAGES]
    show(rows, count, shape, config, config.gpus, config.masks)
    return 0


def build(config: TrainConfig, shape: LasagnaConfig) -> LasagnaForConditionalGeneration:
    """The model as train_ds.py trains it, on the meta device: shapes and no memory."""
    with torch.device("meta"), default_dtype(dtype_of(config.precision)):
        model = LasagnaForConditionalGeneration(shape)
    num_new = len(wanted_tokens(config.sequence_format, for_llava=False))
    adapt(model, new_ids=range(num_new), **config.adapters)
    return model.train()


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def count_parameters(model: LasagnaForConditionalGeneration, encoder_precision: str = "") -> Count:
    """Counts the model's parameters, with those that `--encoder_precision` casts."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    cast = encoders_of(model) if encoder_precision else ()
    return Count(
        total=sum(size for size, _ in sizes),
        trainable=sum(size for size, trains in sizes if trains),
        cast=sum(parameter.numel() for encoder in cast for parameter in encoder.parameters()),
    )


def estimate(
    count: Count, stage: int, num_gpus: int, precision: str, activations: int, *, on_gpu: bool = True
) -> Estimate:
    """Bytes of one process.

    Mixed-precision Adam keeps for every trainable parameter a float32 copy and two float32 moments, 12 bytes; the
    stages divide optimizer (1), gradients too (2), weights too (3): Rajbhandari et al., "ZeRO: Memory Optimizations
    Toward Training Trillion Parameter Models", 2020, section 3 and figure 1. Frozen parameters have weights only.
    Buffers, as DeepSpeed 0.19.8 allocates them: in stages 1 and 2 two reduce buckets on several GPUs, where
    communication overlaps with computation, and one elsewhere; in stage 3 one bucket and the weights that are
    gathered at a time. Before a step, gradients of this process's part of the optimizer become float32.
    """
    width = dtype_of(precision).itemsize
    part = -(-count.trainable // num_gpus)  # rounded up
    own_part = count.trainable if stage == 0 else part
    # In float32 without ZeRO, Adam works on the weights themselves.
    copies = 2 if width == 4 and stage == 0 else 3
    float32_gradients = 0 if width == 4 else 4 * own_part
    bucket = REDUCE_BUCKET if on_gpu else REDUCE_BUCKET_OF_CPU
    buckets = (2 if on_gpu and num_gpus > 1 else 1) * bucket
    buffers = {0: 0, 1: buckets, 2: buckets, 3: bucket + min(MAX_LIVE, count.total)}
    weights = width * (count.total - count.cast) + dtype_of(BF16).itemsize * count.cast
    return Estimate(
        stage=stage,
        weights=weights if stage < 3 else -(-weights // num_gpus),
        gradients=width * (count.trainable if stage < 2 else part) + float32_gradients,
        optimizer=4 * copies * own_part,
        buffers=width * buffers[stage],
        activations=activations,
    )


# --------------------------------------------------------------------------------------------- output


def show(
    rows: Sequence[Estimate],
    count: Count,
    shape: LasagnaConfig,
    config: TrainConfig,
    num_gpus: int,
    num_masks: int,
    console: Console | None = None,
) -> None:
    """The table, in 80 columns."""
    console = console or Console()
    width = min(console.width, 80)
    num_tokens = num_image_tokens(shape.vlm_config, config) + config.model_max_length
    share = count.trainable / count.total
    console.print(
        f"{count.total / 1e9:.2f} billion parameters, {count.trainable / 1e6:.0f} million train ({share:.1%}); "
        f"{num_gpus} GPUs, {config.precision}, {config.batch_size} images each with {num_tokens} tokens and "
        f"{num_masks} masks, gradient checkpointing {'on' if config.gradient_checkpointing else 'off'}. "
        "GB on each GPU:",
        width=width,
        highlight=False,
    )
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    names = ("weights", "gradients", "optimizer", "buffers", "activations", "total")
    for heading in ("ZeRO", *names, "fits on"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        sizes = (f"{getattr(row, name) / 1e9:.1f}" for name in names)
        stage = f"{row.stage}{' *' if row.stage == config.zero_stage else ''}"
        table.add_row(stage, *sizes, f"{row.card} GB" if row.card else f"> {CARDS[-1]} GB")
    console.print(table, width=width)
    console.print("* the configuration's stage; an estimate: leave a tenth of the card free", width=width)


if __name__ == "__main__":
    sys.exit(main())
