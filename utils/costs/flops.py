"""What a training configuration computes, moves and should take, from the configuration alone.

    python -m utils.costs.flops --config configs/lasagna_7b.yaml --gpus 8
    python -m utils.costs.flops --config configs/lasagna_7b.yaml --gpus 512 --conversations 1 --classes 80

The first table is one sample: an image with its conversations in one row. The second is a step: arithmetic at
`--tflops`, communication at `--bandwidth`, and what the disk must deliver. Formulas: utils/costs/flop_formulas.py and
the functions here; docs/performance.md holds the tables of the recipe.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from model.errors import UserError
from utils.common.commands import Parser, command
from utils.common.distributed import dtype_of
from utils.common.settings import parse_config
from utils.config.training import TrainConfig
from utils.costs.cost_model import CostModel, Picture, Work
from utils.costs.flop_formulas import linear, num_image_tokens, total
from utils.costs.memory import PICTURE_SIZE, Count, build, count_parameters
from utils.costs.model_sizes import model_config

# An A100 multiplies bfloat16 matrices at 312 TFLOP/s (data sheet). Trainings of large language models keep 40 to 55 %
# of that (Narayanan et al., "Efficient Large-Scale Language Model Training on GPU Clusters Using Megatron-LM", 2021,
# table 1; Chowdhery et al., "PaLM", 2022, table 3); rows of a thousand tokens are on the low side.
PEAK_TFLOPS, SUSTAINED = 312.0, 0.40
# GB/s of one GPU, each way: NVLink inside a node of eight A100 (300 by the data sheet), one 200 Gb/s InfiniBand port
# for each GPU between nodes (25); collectives reach about 80 %.
MANY_GPUS = 512  # is always shown, too
GPUS_PER_NODE, NVLINK, NETWORK = 8, 240.0, 20.0
MEMORY_BANDWIDTH = 2.0e12  # bytes/s of an A100 with 80 GB
# Tokens, roughly, with LLaMA's tokenizer: the template up to the image; a question with its answer; a class name with
# its comma in the query, and with [SEG] or [NEG] and the comma in the answer.
PREFIX_TOKENS, QUESTION_TOKENS, ANSWER_TOKENS = 45, 20, 10
QUERY_TOKENS_PER_CLASS, ANSWER_TOKENS_PER_CLASS = 3, 4
# COCO's train2017: 18 GB of JPEG, 118,287 images. Annotations add little, except label pictures: 10 to 40 kB.
DISK_BYTES = 155_000


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The samples and machines that are asked about."""

    images: int  # of a micro-batch
    conversations: int  # of an image
    classes: int  # that a conversation asks for; 0: a referring or reasoning question
    masks: int  # [SEG] of an image
    gpus: int
    tflops: float
    bandwidth: float  # GB/s
    disk_bytes: int  # of a sample

    def work(self, num_features: int) -> Work:
        """A micro-batch of packed rows, each with `num_features` image features."""
        learned = self.classes * ANSWER_TOKENS_PER_CLASS or ANSWER_TOKENS
        own = QUESTION_TOKENS + self.classes * QUERY_TOKENS_PER_CLASS + learned
        num_text = PREFIX_TOKENS + self.conversations * own
        height, width = (round(side * 1024 / max(PICTURE_SIZE)) for side in PICTURE_SIZE)
        picture = Picture(num_masks=self.masks, resized_size=(height, width), original_size=PICTURE_SIZE)
        return Work(
            pictures=(picture,) * self.images,
            num_rows=self.images,
            row_length=num_features + num_text,
            num_learned=self.images * self.conversations * learned,
            num_text_tokens=self.images * num_text,
            num_encoded=self.images,
        )


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """One optimizer step on one GPU."""

    stage: int
    gpus: int
    images: int  # of all GPUs
    compute: float  # seconds
    communication: float  # seconds, if nothing of it is hidden
    sent: float  # bytes

    @property
    def fastest(self) -> float:
        """Seconds when all communication is hidden behind arithmetic."""
        return max(self.compute, self.communication)

    @property
    def slowest(self) -> float:
        """Seconds when none is."""
        return self.compute + self.communication


@command("utils.costs.flops")
def main(argv: Sequence[str] | None = None) -> int:
    parser = argument_parser()
    own, rest = parser.parse_known_args(argv)
    config = parse_config(TrainConfig, rest)
    setting = setting_of(own, config)
    shape = model_config(config)
    model = build(config, shape)
    count, encoders = count_parameters(model), encoder_parameters(model)
    costs = CostModel.of(config, shape)
    work = setting.work(num_image_tokens(shape.vlm_config))
    console = Console()
    show_sample(costs, work, setting, console)
    step = total(costs.training(work).values()) * config.grad_accumulation_steps
    rows = [
        predict(step.total, count, encoders, stage, gpus, setting, config)
        for gpus in sorted({setting.gpus, MANY_GPUS})
        for stage in (2, 3)
    ]
    show_steps(rows, setting, config, console)
    show_answer(costs, config, console)
    return 0


def argument_parser() -> Parser:
    parser = Parser(
        prog="python -m utils.costs.flops",
        description="FLOPs, bytes and time of a training configuration; every flag of train_ds.py may be added.",
        allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--gpus", type=int, default=8, help="processes, one for each GPU")
    parser.add_argument("--images", type=int, default=0, help="of a micro-batch; 0: --batch_size")
    parser.add_argument("--conversations", type=int, default=5, help="of each image, packed in one row")
    parser.add_argument("--classes", type=int, default=0, help="asked for in each; 0: a referring question")
    parser.add_argument("--masks", type=int, default=0, help="[SEG] of each image; 0: one a conversation")
    parser.add_argument(
        "--tflops", type=float, default=PEAK_TFLOPS * SUSTAINED, help="what a GPU keeps up, TFLOP/s"
    )
    parser.add_argument(
        "--bandwidth", type=float, default=0.0,
        help=f"GB/s of each GPU; 0: {NVLINK:.0f} in a node of {GPUS_PER_NODE}, {NETWORK:.0f} between nodes",
    )  # fmt: skip
    parser.add_argument("--disk_bytes", type=int, default=DISK_BYTES, help="of one sample on disk")
    return parser


def setting_of(own: argparse.Namespace, config: TrainConfig) -> Setting:
    """The flags, checked."""
    for name in ("gpus", "conversations", "tflops", "disk_bytes"):
        if getattr(own, name) <= 0:
            raise UserError(f"--{name} must be > 0, got {getattr(own, name)}")
    for name in ("images", "classes", "masks", "bandwidth"):
        if getattr(own, name) < 0:
            raise UserError(f"--{name} must be >= 0, got {getattr(own, name)}")
    values = vars(own) | {"images": own.images or config.batch_size, "masks": own.masks or own.conversations}
    return Setting(**values)


def encoder_parameters(model: Any) -> int:
    """Weights that only the way forward reads: CLIP, its projector and SAM's image encoder."""
    parts = (model.llava.model.vision_tower, model.llava.model.multi_modal_projector, model.sam.image_encoder)
    return sum(parameter.numel() for part in parts for parameter in part.parameters())


def bytes_sent(
    count: Count, encoders: int, stage: int, num_gpus: int, width: int, micro_batches: int
) -> float:
    """Bytes that each GPU sends (and receives) in one optimizer step.

    A ring all-gather or reduce-scatter of n bytes sends (G - 1) / G n. Gradients of what trains are reduced after
    each micro-batch, the trained weights gathered after the step. Stage 3 also gathers all weights, frozen ones too,
    on the way forward and, encoders aside, on the way back: Rajbhandari et al., "ZeRO", 2020, section 7.
    """
    ring = (num_gpus - 1) / num_gpus
    gradients = micro_batches * count.trainable
    weights = count.trainable if stage < 3 else micro_batches * (2 * count.total - encoders)
    return ring * width * (gradients + weights)


def predict(
    flops: float,
    count: Count,
    encoders: int,
    stage: int,
    gpus: int,
    setting: Setting,
    config: TrainConfig,
) -> Prediction:
    """A step of `flops` on each of `gpus` GPUs."""
    micro_batches = config.grad_accumulation_steps
    sent = bytes_sent(count, encoders, stage, gpus, dtype_of(config.precision).itemsize, micro_batches)
    bandwidth = setting.bandwidth or (NVLINK if gpus <= GPUS_PER_NODE else NETWORK)
    return Prediction(
        stage=stage,
        gpus=gpus,
        images=setting.images * micro_batches * gpus,
        compute=flops / (setting.tflops * 1e12),
        communication=sent / (bandwidth * 1e9),
        sent=sent,
    )


# --------------------------------------------------------------------------------------------- output


def show_sample(costs: CostModel, work: Work, setting: Setting, console: Console) -> None:
    """FLOPs of each part for one sample: an image with all its conversations."""
    parts = costs.training(work)
    whole = total(parts.values())
    write(
        console,
        f"One sample: an image, {setting.conversations} conversations"
        f"{f' of {setting.classes} classes' if setting.classes else ''} in one row of {work.row_length} tokens "
        f"({work.num_learned // setting.images} learned), {setting.masks} masks. TFLOP, a multiply-add being 2 FLOP:",
    )
    table = make_table("part", "forward", "backward", "extra", "sum", "share")
    for name, part in [*parts.items(), ("all", whole)]:
        values = (part.forward, part.backward, part.extra, part.total)
        table.add_row(
            name,
            *(f"{value / setting.images / 1e12:.3f}" for value in values),
            f"{part.total / whole.total:.1%}",
        )
    console.print(table, width=80)
    write(
        console,
        "extra: made again by checkpointing, and the width of SAM's folded attention; no work of the model. "
        f"To the GPU: {costs.input_bytes(work) / setting.images / 1e6:.1f} MB a sample; from disk "
        f"{setting.disk_bytes / 1e6:.2f} MB, with --sam_cache {costs.embedding_bytes(2) / 1e6:.1f} MB more "
        "and no SAM encoder; embeddings in 16 bits.",
    )


def show_steps(rows: Sequence[Prediction], setting: Setting, config: TrainConfig, console: Console) -> None:
    """Time, communication and data of a step."""
    write(
        console,
        f"\nOne optimizer step of {config.grad_accumulation_steps} micro-batches of {setting.images} images on each "
        f"GPU at {setting.tflops:.0f} TFLOP/s, communication from all hidden to none:",
    )
    table = make_table("ZeRO", "GPUs", "sent GB", "compute s", "comm. s", "step s", "images/s", "disk MB/s")
    for row in rows:
        slow, fast = row.images / row.slowest, row.images / row.fastest
        megabytes = setting.disk_bytes / 1e6
        table.add_row(
            str(row.stage),
            str(row.gpus),
            f"{row.sent / 1e9:.0f}",
            f"{row.compute:.1f}",
            f"{row.communication:.1f}",
            between(row.fastest, row.slowest, 1),
            between(slow, fast, 0),
            between(slow * megabytes, fast * megabytes, 0),
        )
    console.print(table, width=80)


def show_answer(costs: CostModel, config: TrainConfig, console: Console) -> None:
    """A complex query of 150 classes: token by token behind a cache, and in passes over the whole answer."""
    text = costs.shape.vlm_config.text_config
    num_classes, num_passes = 150, 3
    prompt = num_image_tokens(costs.shape.vlm_config) + PREFIX_TOKENS + num_classes * QUERY_TOKENS_PER_CLASS
    answer = num_classes * ANSWER_TOKENS_PER_CLASS
    width = dtype_of(config.precision).itemsize
    weights = costs.weight_bytes(width)
    head = linear(answer, text.hidden_size, text.vocab_size)
    ways = {
        "token by token": (costs.prompt(answer, prompt) + head, answer * weights),
        f"{num_passes} passes": (num_passes * (costs.prompt(answer, prompt) + head), num_passes * weights),
    }
    write(
        console,
        f"\nAn answer about {num_classes} classes: {answer} tokens behind a prompt of {prompt} tokens "
        f"({costs.prompt(prompt) / 1e12:.1f} TFLOP). Seconds: the larger of arithmetic at "
        f"{PEAK_TFLOPS * SUSTAINED:.0f} TFLOP/s and weights read at {MEMORY_BANDWIDTH / 1e12:.0f} TB/s:",
    )
    table = make_table("decoding", "TFLOP", "weights read GB", "seconds")
    for name, (flops, read) in ways.items():
        seconds = max(flops / (PEAK_TFLOPS * SUSTAINED * 1e12), read / MEMORY_BANDWIDTH)
        table.add_row(name, f"{flops / 1e12:.1f}", f"{read / 1e9:.0f}", f"{seconds:.2f}")
    console.print(table, width=80)


def make_table(*headings: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="right" if index else "left", no_wrap=True)
    return table


def write(console: Console, text: str) -> None:
    console.print(text, width=80, highlight=False)


def between(low: float, high: float, digits: int) -> str:
    shown = [f"{value:.{digits}f}" for value in (low, high)]
    return shown[0] if shown[0] == shown[1] else "-".join(shown)


if __name__ == "__main__":
    sys.exit(main())
