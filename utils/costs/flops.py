"""FLOPs, bytes moved and predicted time of a training configuration.

    python -m utils.costs.flops --config configs/lasagna_7b.yaml --gpus 8
    python -m utils.costs.flops --config configs/lasagna_7b.yaml --gpus 512 \\
      --conversations 1 --classes 80

From the configuration alone: no weights are read. The first table is one
sample: an image with its conversations in one row. The second is a step, on
--gpus, 64 and 512 GPUs: arithmetic at --tflops, communication at --bandwidth,
and what the disk must deliver. The third is what the data cost such a run, from
files and from shards, and what limits it. The fourth is an answer about 150
classes. Formulas: utils/costs/flop_formulas.py, prediction.py and loading.py;
docs/performance.md holds the tables of the recipe.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from utils.common.command_line import answer_at_once, parse_config
from utils.costs.settings import FlopsConfig

if __name__ == "__main__":
    answer_at_once("utils.costs.flops", FlopsConfig, __doc__)  # slow imports follow

from rich import box
from rich.console import Console
from rich.table import Table

from model.decoders.transform import ImageTransform
from utils.common.commands import command
from utils.common.distributed import dtype_of
from utils.config.training import TrainConfig
from utils.costs.assumptions import (
    ANSWER_TOKENS_PER_CLASS,
    GPUS_PER_NODE,
    MEMORY_BANDWIDTH,
    PEAK_TFLOPS,
    PREFIX_TOKENS,
    QUERY_TOKENS_PER_CLASS,
    SUSTAINED,
)
from utils.costs.cost_model import CostModel, Work
from utils.costs.flop_formulas import linear, total
from utils.costs.loading import FILES, SHARDS, Disk, Loading, loading
from utils.costs.memory import build, count_parameters
from utils.costs.model_sizes import model_config
from utils.costs.prediction import Prediction, Setting, encoder_parameters, predict
from utils.costs.vision_flops import num_image_tokens

MANY_GPUS = (64, 512)  # are always shown, too


@command("utils.costs.flops")
def main(argv: Sequence[str] | None = None) -> int:
    config = parse_config(FlopsConfig, argv, about=__doc__)
    setting = setting_of(config)
    shape = model_config(config)
    model = build(config, shape)
    count, encoders = count_parameters(model, config.encoder_precision), encoder_parameters(model)
    costs = CostModel.of(config, shape)
    sam = shape.sam_settings
    work = setting.work(
        num_image_tokens(shape.vlm_config, config), ImageTransform(sam.image_size, sam.resize)
    )
    console = Console()
    show_sample(costs, work, setting, console)
    step = total(costs.training(work).values()) * config.grad_accumulation_steps
    all_gpus = sorted({setting.gpus, *MANY_GPUS})

    def predicted(stage: int, gpus: int) -> Prediction:
        return predict(step.total, count, encoders, stage, gpus, setting, config)

    show_steps([predicted(stage, gpus) for gpus in all_gpus for stage in (2, 3)], setting, config, console)
    steps = [predicted(config.zero_stage, gpus) for gpus in all_gpus]
    disk = disk_of(config)
    rows = [loading(step, disk, config, data) for step in steps for data in (FILES, SHARDS)]
    show_loading(rows, config, console)
    show_answer(costs, config, console)
    return 0


def disk_of(config: FlopsConfig) -> Disk:
    """The data asked about."""
    return Disk(
        num_images=config.disk_images,
        sample_bytes=config.disk_bytes,
        files_per_sample=config.disk_files,
        open_ms=config.open_ms,
        server_opens=config.server_opens,
        loader_rate=config.loader_rate,
    )


def setting_of(config: FlopsConfig) -> Setting:
    """The samples and machines asked about."""
    return Setting(
        images=config.images or config.batch_size,
        conversations=config.conversations,
        classes=config.classes,
        masks=config.masks or config.conversations,
        gpus=config.gpus,
        tflops=config.tflops,
        bandwidth=config.bandwidth,
        disk_bytes=config.disk_bytes,
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
        "extra: recomputation by checkpointing and the wider heads of SAM's folded attention. "
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


def show_loading(rows: Sequence[Loading], config: FlopsConfig, console: Console) -> None:
    """What the data cost, and what limits."""
    write(
        console,
        f"\nThe data of such a run, {config.workers} loading processes for each GPU, {config.loader_rate:g} "
        f"images/s each, {config.disk_files:g} files a sample, {config.open_ms:g} ms an opening, at most "
        f"{config.server_opens:g} of them a second, {GPUS_PER_NODE} GPUs a node (ZeRO {config.zero_stage}, all else "
        "overlaps with what limits):",
    )
    table = make_table("GPUs", "data", "images/s", "limit", "opened/s", "MB/s a node", "GB a node, run")
    for row in rows:
        table.add_row(
            str(row.gpus),
            row.data,
            f"{row.images:.0f}",
            row.limit,
            f"{row.opened:.0f}" if row.opened >= 10 else f"{row.opened:.3f}",
            f"{row.node_rate / 1e6:.2f}",
            f"{row.node_bytes / 1e9:.1f}",
        )
    console.print(table, width=80)


def show_answer(costs: CostModel, config: TrainConfig, console: Console) -> None:
    """A complex query of 150 classes: token by token with a cache, and in passes over the whole answer."""
    text = costs.shape.vlm_config.text_config
    num_classes, num_passes = 150, 3
    prompt = (
        num_image_tokens(costs.shape.vlm_config, config)
        + PREFIX_TOKENS
        + num_classes * QUERY_TOKENS_PER_CLASS
    )
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
