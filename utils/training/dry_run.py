"""--dry_run: one optimizer step with a batch of each data set; how long samples are, how much memory it takes.

Nothing is saved, and an earlier run in the same folder is neither continued nor touched.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from model.inputs import ModelInputs
from utils.common.distributed import gather_objects, process_rank, seed_of_micro_batch, world_size
from utils.common.terminal import printable
from utils.config.training import TrainConfig
from utils.costs import memory
from utils.costs.activations import activation_bytes
from utils.costs.assumptions import MASKS_PER_IMAGE
from utils.data.collate import Collate
from utils.data.mixture import Mixture
from utils.training.engine import Engine
from utils.training.meters import peak_memory

WIDTH, NAME_WIDTH = 80, 26  # columns


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """One number for each sample of a batch."""

    tokens: tuple[int, ...]  # that the language model reads, image tokens included
    masks: tuple[int, ...]
    conversations: tuple[int, ...]

    @classmethod
    def of(cls, inputs: ModelInputs, conversations: Sequence[int]) -> Lengths:
        """Those of a batch on the CPU."""
        in_row = inputs.attention_mask.sum(dim=1).tolist()
        num_images = len(inputs.original_sizes)
        tokens = [0] * num_images
        for owner, length in zip(inputs.image_of_row, in_row, strict=True):
            tokens[owner] += length
        return cls(
            tokens=tuple(tokens),
            masks=tuple(inputs.seg_images.count(index) for index in range(num_images)),
            conversations=tuple(conversations),
        )

    @classmethod
    def joined(cls, parts: Sequence[Lengths]) -> Lengths:
        """All samples of several batches."""
        return cls(
            tokens=tuple(number for part in parts for number in part.tokens),
            masks=tuple(number for part in parts for number in part.masks),
            conversations=tuple(number for part in parts for number in part.conversations),
        )


def dry_run(engine: Engine, config: TrainConfig, mixture: Mixture) -> str:
    """Train one step, whose micro-batches are one of each data set. A collective call.

    Args:
        engine: with as many accumulated micro-batches as the mixture has data sets.

    Returns:
        the lines to print.
    """
    lengths: dict[str, Lengths] = {}
    losses: list[dict[str, float]] = []
    engine.train()
    for number, source in enumerate(mixture.sources):
        alone = Mixture([source], [1.0], recipe=mixture.recipe, seed=config.seed, fit=mixture.fit)
        first = process_rank() * config.batch_size
        samples = [alone[index] for index in range(first, first + config.batch_size)]
        collate = Collate(
            engine.module.processor,
            fast_resize=config.fast_resize,
            pack_rows=config.pack and engine.module.can_pack_rows,
            max_length=config.model_max_length,
            pad_to_multiple_of=config.pad_to_multiple_of,
        )
        batch = collate(samples)
        mine = Lengths.of(batch.inputs, [len(sample.conversations) for sample in samples])
        lengths[f"{source.name}|{source.split}"] = Lengths.joined(gather_objects(mine))
        torch.manual_seed(seed_of_micro_batch(config.seed, 1, number))
        output = engine(**batch.to(engine.device).inputs.fields())
        assert output.losses is not None, "a batch of training has labels"
        losses.append({name: value.item() for name, value in output.losses.values().items()})
        engine.backward(output.loss)
        engine.step()
    largest = max(gather_objects(peak_memory(engine.device)))
    return "\n".join(
        [
            f"dry run: a batch of {config.batch_size} samples of each data set"
            + (f" in each of {world_size()} processes" if world_size() > 1 else "")
            + ", one step",
            *length_table(lengths),
            *loss_lines(losses),
            *memory_lines(engine, config, max(map(max, (one.masks for one in lengths.values()))), largest),
            "nothing was saved",
        ]
    )


def length_table(lengths: dict[str, Lengths]) -> list[str]:
    """A row for each data set, and one for all."""
    rows = dict(lengths)
    if len(rows) > 1:
        rows["all"] = Lengths.joined(list(lengths.values()))
    head = f"{'':{NAME_WIDTH}}{'images':>7}  {'tokens of a sample':>20}  {'masks of a sample':>20}"
    below = f"{'':{NAME_WIDTH}}{'':>7}  {'min   mean    max':>20}  {'min   mean    max':>20}"
    return [head, below, *(_row(name, one) for name, one in rows.items())]


def _row(name: str, lengths: Lengths) -> str:
    shown = printable(name)
    cells = "".join(
        f"  {min(numbers):>8}{sum(numbers) / len(numbers):>7.1f}{max(numbers):>5}"
        for numbers in (lengths.tokens, lengths.masks)
    )
    line = f"{shown:{NAME_WIDTH}}{len(lengths.tokens):>7}{cells}"
    return line if len(shown) < NAME_WIDTH else f"{shown}\n{line[len(shown) :]:>{WIDTH}}"


def loss_lines(losses: Sequence[dict[str, float]]) -> list[str]:
    """The means over the micro-batches."""
    means = {name: sum(one[name] for one in losses) / len(losses) for name in losses[0]}
    values = ", ".join(f"{name} {value:.3f}" for name, value in means.items())
    return textwrap.wrap(f"losses: {values}", WIDTH, subsequent_indent="  ")


def memory_lines(engine: Engine, config: TrainConfig, most_masks: int, measured: int) -> list[str]:
    """What a process may take by the estimate, and what it took.

    Args:
        most_masks: of an image, in the batches that were seen.
        measured: bytes.
    """
    on_gpu, num_masks = engine.device.type == "cuda", max(most_masks, MASKS_PER_IMAGE)
    model = memory.build(config, engine.module.config)
    estimated = memory.estimate(
        memory.count_parameters(model, config.encoder_precision),
        config.zero_stage,
        world_size(),
        config.precision,
        activation_bytes(model, config, num_masks),
        on_gpu=on_gpu,
    )
    kinds = ("weights", "gradients", "optimizer", "buffers", "activations")
    parts = ", ".join(f"{kind} {getattr(estimated, kind) / 1e9:.2f}" for kind in kinds)
    where = "tensors on the GPU" if on_gpu else "the whole process, with its libraries"
    return [
        *textwrap.wrap(
            f"memory estimated: {estimated.total / 1e9:.2f} GB ({parts})", WIDTH, subsequent_indent="  "
        ),
        f"memory measured: {measured / 1e9:.2f} GB at most ({where})",
        f"the estimate is for {config.model_max_length:,} text tokens and {num_masks} masks of each image",
    ]
