"""FLOPs, bytes moved and predicted time of a training configuration.

    python -m utils.costs.flops --config configs/lasagna_7b.yaml --gpus 8
    python -m utils.costs.flops --config configs/lasagna_7b.yaml --gpus 512 \\
      --conversations 1 --classes 80

From the configuration alone: no weights are read. The first table is one
sample: an image with its conversations in one row. The second is a step:
arithmetic at --tflops, communication at --bandwidth, and what the disk must
deliver. Formulas: utils/costs/flop_formulas.py and the functions here;
docs/performance.md holds the tables of the recipe.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from utils.common.commands import command
from utils.common.distributed import dtype_of
from utils.common.settings import parse_config, require_not_negative, require_positive
from utils.common.settings import setting as declare
from utils.config.training import TrainConfig
from utils.costs.cost_model import CostModel, ImageShape, Work
from utils.costs.flop_formulas import linear, num_image_tokens, total
from utils.costs.memory import COSTS, IMAGE_SIZE, Count, build, count_parameters
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
# COCO's train2017: 18 GB of JPEG, 118,287 images. Annotations add little, except label images: 10 to 40 kB.
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
    bandwidth: float | None  # GB/s; None: NVLINK or NETWORK
    disk_bytes: int  # of a sample

    def work(self, num_features: int) -> Work:
        """A micro-batch of packed rows, each with `num_features` image features."""
        learned = self.classes * ANSWER_TOKENS_PER_CLASS or ANSWER_TOKENS
        own = QUESTION_TOKENS + self.classes * QUERY_TOKENS_PER_CLASS + learned
        num_text = PREFIX_TOKENS + self.conversations * own
        height, width = (round(side * 1024 / max(IMAGE_SIZE)) for side in IMAGE_SIZE)
        image = ImageShape(num_masks=self.masks, resized_size=(height, width), original_size=IMAGE_SIZE)
        return Work(
            images=(image,) * self.images,
            num_rows=self.images,
            row_length=num_features + num_text,
            num_learned=self.images * self.conversations * learned,
            num_text_tokens=self.images * num_text,
            num_encoded=self.images,
        )


@dataclass(frozen=True, kw_only=True)
class FlopsConfig(TrainConfig):
    """The settings of training, and what is asked about them."""

    gpus: int = declare(8, "processes, one per GPU", group=COSTS)
    images: int | None = declare(None, "images of a micro-batch", group=COSTS, unset="--batch_size")
    conversations: int = declare(5, "conversations of each image, packed in one row", group=COSTS)
    classes: int = declare(0, "classes that each one asks for; 0 is a referring question", group=COSTS)
    masks: int | None = declare(
        None, "number of [SEG] of each image", group=COSTS, unset="one per conversation"
    )
    tflops: float = declare(PEAK_TFLOPS * SUSTAINED, "sustained TFLOP/s of a GPU", group=COSTS)
    bandwidth: float | None = declare(
        None,
        "GB/s of each GPU",
        group=COSTS,
        unset=f"{NVLINK:.0f} in a node of {GPUS_PER_NODE}, {NETWORK:.0f} between nodes",
    )
    disk_bytes: int = declare(DISK_BYTES, "bytes of one sample on disk", group=COSTS)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(
            self, "gpus", "images", "conversations", "masks", "tflops", "bandwidth", "disk_bytes"
        )
        require_not_negative(self, "classes")

    @property
    def setting(self) -> Setting:
        """The samples and machines asked about."""
        return Setting(
            images=self.images or self.batch_size,
            conversations=self.conversations,
            classes=self.classes,
            masks=self.masks or self.conversations,
            gpus=self.gpus,
            tflops=self.tflops,
            bandwidth=self.bandwidth,
            disk_bytes=self.disk_bytes,
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
    config = parse_config(FlopsConfig, argv, about=__doc__)
    setting = config.setting
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


def encoder_parameters(model: Any) -> int:
    """Weights that only forward reads: CLIP, its projector and SAM's image encoder."""
    parts = (model.llava.model.vision_tower, model.llava.model.multi_modal_projector, model.sam.image_encoder)
    return sum(parameter.numel() for part in parts for parameter in part.parameters())


def bytes_sent(
    count: Count, encoders: int, stage: int, num_gpus: int, width: int, micro_batches: int
) -> float:
    """Bytes that each GPU sends (and receives) in one optimizer step.

    A ring all-gather or reduce-scatter of n bytes sends (G - 1) / G n. Gradients of what trains are reduced after
    each micro-batch, the trained weights gathered after the step. Stage 3 also gathers all weights, frozen ones too,
    in forward and, encoders aside, in backward: Rajbhandari et al., "ZeRO", 2020, section 7.
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
        "extra: recomputed by checkpointing, and the width of SAM's folded attention; no work of the model. "
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
    """A complex query of 150 classes: token by token with a cache, and in passes over the whole answer."""
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
        f"\nAn answer about {num_classes} classes: {answer} tokens after a prompt of {prompt} tokens "
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
