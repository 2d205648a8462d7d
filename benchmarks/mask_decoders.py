"""The mask decoders of SAM and SAM 2, ours against the libraries' own, on the same weights: masks and gradients.

    python -m benchmarks.mask_decoders            # 256 channels, a grid of 64 x 64, ten masks of one image
    python -m benchmarks.mask_decoders --quick    # small ones, in seconds

Ten prompts are decoded from an image's levels, and the sum of the masks goes backward, in float32 on one thread, as
in a training step whose image encoder is cached. Ways alternate, and a number is a median over the rounds. Both ways
compute the same masks and the same gradients of the prompts (asserted).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks import script_parser
from benchmarks.measure import Claim, Runs, claims_table, take_turns, write_results
from model.decoders.sam import SamSettings, build_sam
from model.decoders.sam2 import KINDS, Sam2Settings
from model.decoders.sam_mask_decoder import FusedFineMaskDecoder, FusedMaskDecoder

LIBRARY, OURS = "library", "ours"
TOLERANCE = 1e-4  # of the largest value
QUICK_SIDE, NUM_MASKS = 8, 10

Way = Callable[[], list[Tensor]]


def as_segment_anything(
    decoder: nn.Module, prompts: Tensor, image: Tensor, positions: Tensor
) -> tuple[Tensor, Tensor]:
    """Masks and their quality by segment_anything's own decoder, for the arguments of `FusedMaskDecoder`."""
    masks, quality = decoder(
        image_embeddings=torch.zeros_like(positions),
        image_pe=positions,
        sparse_prompt_embeddings=prompts,
        dense_prompt_embeddings=image,
        multimask_output=False,
    )
    return masks.squeeze(1), quality


def as_transformers(
    decoder: nn.Module, prompts: Tensor, image: Tensor, positions: Tensor, fine: Tensor, middle: Tensor
) -> Tensor:
    """Masks by transformers' own decoder, for the arguments of `FusedFineMaskDecoder`."""
    masks, *_ = decoder(
        image_embeddings=image,
        image_positional_embeddings=positions,
        sparse_prompt_embeddings=prompts.unsqueeze(1),
        dense_prompt_embeddings=torch.zeros_like(image),
        multimask_output=False,
        high_resolution_features=[fine, middle],
    )
    return masks[:, 0, 0]


def way(decode: Callable[..., Tensor], given: Sequence[Tensor]) -> Way:
    """Masks, and the gradient of the prompts, which are the first of what is given."""

    def run() -> list[Tensor]:
        prompts, *others = given
        prompts = prompts.detach().requires_grad_()
        masks = decode(prompts, *others)
        masks.sum().backward()
        assert prompts.grad is not None
        return [masks.detach(), prompts.grad]

    return run


def sam_ways(side: int, num_masks: int) -> dict[str, Way]:
    """SAM's mask decoder, as segment_anything has it and as it is here."""
    settings = SamSettings(image_size=16 * side, encoder_depth=1, encoder_global_blocks=(0,))
    eager = build_sam(settings).mask_decoder
    fused = FusedMaskDecoder(deepcopy(eager))
    shape = settings.embedding_shapes[0]
    given = [torch.randn(num_masks, 1, shape[0]), torch.randn(num_masks, *shape), torch.randn(1, *shape)]

    return {
        LIBRARY: way(lambda *parts: as_segment_anything(eager, *parts)[0], given),
        OURS: way(lambda *parts: fused(*parts)[0], given),
    }


def sam2_ways(side: int, num_masks: int) -> dict[str, Way]:
    """SAM 2's mask decoder, as transformers has it and as it is here."""
    settings = Sam2Settings()
    eager: nn.Module = KINDS["sam2"].model(deepcopy(settings.config)).mask_decoder
    fused = FusedFineMaskDecoder(deepcopy(eager))
    channels = [shape[0] for shape in settings.embedding_shapes]
    fine, middle, coarse = (
        torch.randn(num_masks, width, times * side, times * side)
        for width, times in zip(channels, (4, 2, 1), strict=True)
    )
    prompts, positions = torch.randn(num_masks, 1, channels[-1]), torch.randn(1, channels[-1], side, side)
    given = [prompts, coarse, positions, fine, middle]

    return {
        LIBRARY: way(partial(as_transformers, eager), given),
        OURS: way(lambda *parts: fused(*parts)[0], given),
    }


def compare(ways: Mapping[str, Way], rounds: int) -> dict[str, Runs]:
    """Alternating runs of both ways, after a check that their results are the same."""
    for ours, theirs in zip(ways[OURS](), ways[LIBRARY](), strict=True):
        difference = float((ours - theirs).abs().max() / theirs.abs().max())
        assert difference < TOLERANCE, f"ours is off by {difference:.1e} of the largest value"
    return take_turns(ways, rounds, warm_up=0)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = script_parser("benchmarks.mask_decoders", __doc__)
    parser.add_argument("--rounds", type=int, default=5, help="rounds over which medians are taken")
    parser.add_argument("--quick", action="store_true", help="a grid of 8 x 8")
    parser.add_argument("--out", default="runs/benchmarks/mask_decoders.json", help="JSON file to write")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    side = QUICK_SIDE if arguments.quick else 64
    results = {
        "SAM": compare(sam_ways(side, NUM_MASKS), arguments.rounds),
        "SAM 2": compare(sam2_ways(side, NUM_MASKS), arguments.rounds),
    }
    claims = [
        Claim(
            name=f"{name}'s mask decoder, {NUM_MASKS} masks of a {side} x {side} grid with gradients, times faster",
            value=runs[OURS].times_faster(runs[LIBRARY]),
            bar=None if arguments.quick else 1.3,
        )
        for name, runs in results.items()
    ]
    print(claims_table(claims))
    write_results(
        arguments.out,
        vars(arguments),
        claims,
        results={name: {way: run.to_dict() for way, run in runs.items()} for name, runs in results.items()},
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
