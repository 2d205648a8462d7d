"""SAM ViT-H's image encoder, ours against segment_anything's on the same weights; its attention in several ways."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.gpu.machine import Machine
from benchmarks.gpu.results import Results
from benchmarks.models import fill_positions
from benchmarks.sam import settings_of
from model.decoders.sam import SamSegmenter, SamSettings, build_sam
from model.decoders.sam_attention import attend_folded, attend_with_mask
from utils.costs.memory import default_dtype

BATCHES, TINY_BATCHES = (1, 4), (1,)
BAR = 1.5  # times segment_anything's images a second
TOLERANCE = 0.02  # of the two embeddings' difference in bfloat16, |a - b| / |b|
ROUNDS = 10


@torch.no_grad()
def measure(machine: Machine, results: Results) -> None:
    """Adds the part "sam"."""
    settings = settings_of("tiny") if machine.tiny else SamSettings()
    torch.manual_seed(0)
    with torch.device(machine.device), default_dtype(machine.dtype):
        eager = build_sam(settings).image_encoder.eval()
        fill_positions(eager)
        ours = SamSegmenter(settings).image_encoder.eval()
    ours.load_state_dict(eager.state_dict())
    side = settings.image_size
    for batch in TINY_BATCHES if machine.tiny else BATCHES:
        images = torch.randn(batch, 3, side, side, device=machine.device, dtype=machine.dtype)
        expected = eager(images).float()
        off = float((ours(images).float() - expected).norm() / expected.norm())
        results.add("sam", f"embeddings against segment_anything, batch {batch}, difference", off,
                    bar=TOLERANCE, at_least=False)  # fmt: skip
        seconds = {
            name: machine.seconds(lambda encoder=encoder, images=images: encoder(images), ROUNDS)
            for name, encoder in (("segment_anything", eager), ("ours", ours))
        }
        for name, value in seconds.items():
            results.add("sam", f"ViT-H, batch {batch}, {name}, images/s", batch / value)
        results.add("sam", f"ViT-H, batch {batch}, times segment_anything's images/s",
                    seconds["segment_anything"] / seconds["ours"], bar=BAR)  # fmt: skip
    compare_attention(machine, results, settings)
    results.attempt("sam", "blocks", lambda: time_blocks(machine, results, ours, settings))


def compare_attention(machine: Machine, results: Results, settings: SamSettings) -> None:
    """Milliseconds of one block's attention for one image, behind qkv, in each exact way."""
    grid, window = settings.grid_size[0], settings.encoder_window_size
    windows = (-(-grid // window)) ** 2
    for kind, n, side in (("window", windows, window), ("global", 1, grid)):
        for name, run in attention_ways(machine, settings, n, side).items():
            took = results.attempt(
                "sam", f"{kind} attention, {name}", lambda run=run: machine.seconds(run, ROUNDS)
            )
            if took is not None:
                results.add("sam", f"{kind} attention, {name}, ms", 1e3 * took)


def attention_ways(
    machine: Machine, settings: SamSettings, n: int, side: int
) -> dict[str, Callable[[], Tensor]]:
    """Attention among side x side tokens, in `n` windows."""
    heads, dim = settings.encoder_num_heads, settings.encoder_dim // settings.encoder_num_heads
    options = {"device": machine.device, "dtype": machine.dtype}
    q, k, v = (torch.randn(n, heads, side * side, dim, **options) for _ in range(3))
    rel_h, rel_w = (torch.randn(n, heads, side, side, side, **options) for _ in range(2))
    return {
        "folded": lambda: attend_folded(q, k, v, rel_h, rel_w),
        "mask": lambda: attend_with_mask(q, k, v, rel_h, rel_w),
        "no relative positions (another result)": lambda: F.scaled_dot_product_attention(q, k, v),
    }


def time_blocks(machine: Machine, results: Results, encoder: nn.Module, settings: SamSettings) -> None:
    """Milliseconds of a windowed and of a global block for one image."""
    states = torch.randn(
        1, *settings.grid_size, settings.encoder_dim, device=machine.device, dtype=machine.dtype
    )
    windowed = next(i for i in range(settings.encoder_depth) if i not in settings.encoder_global_blocks)
    for name, index in (("windowed", windowed), ("global", settings.encoder_global_blocks[0])):
        block = encoder.blocks[index]
        took = machine.seconds(lambda block=block: block(states), ROUNDS)
        results.add("sam", f"{name} block, ms", 1e3 * took)
