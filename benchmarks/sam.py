"""SAM's image encoder, ours against segment_anything's own, on the same weights: seconds and peak memory.

    python -m benchmarks.sam            # ViT-B at 1024 pixels: prints Markdown, writes runs/benchmarks/sam.json
    python -m benchmarks.sam --quick    # a tiny SAM: seconds

One image, float32, one thread. "Encoder" is all of it, also in bfloat16 where the CPU has it (--encoder_precision).
"Global attention" is that of one block that sees the whole
image, in both ways of `model.decoders.sam_attention`: in chunks, as on a CPU, and folded, as on a GPU. Ways
alternate, and each number is a median over the rounds. Memory is the peak growth of this process; weights and the
image are allocated before. All ways compute the same numbers (asserted), in bfloat16 within its rounding.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy

import torch
from torch import Tensor

from benchmarks import script_parser
from benchmarks.measure import Claim, Runs, claims_table, take_turns, write_results
from benchmarks.models import SIZES, TINY_SAM, fill_positions
from model.decoders.sam import SamSegmenter, SamSettings, build_sam
from model.decoders.sam_attention import attend_folded
from model.encoder_precision import cast_encoder, cpu_has_bf16
from utils.costs.model_sizes import SAM

EAGER, OURS, FOLDED = "segment_anything", "ours", "ours, folded as on a GPU"
HALF = "ours, bfloat16"
TOLERANCE, TOLERANCE_OF_HALF = 1e-5, 0.05  # of the largest value


def settings_of(size: str) -> SamSettings:
    """Sizes of a tiny SAM, or of ViT-B."""
    return TINY_SAM if size == "tiny" else SamSettings(**SAM["vit_b"])


class Bench:
    """Both encoders with the same random weights, and an image."""

    def __init__(self, settings: SamSettings, *, seed: int = 0) -> None:
        torch.manual_seed(seed)
        reference = build_sam(settings)
        fill_positions(reference.image_encoder)
        ours = SamSegmenter(settings)
        # One copy of the weights; names are the same.
        ours.load_state_dict(reference.state_dict(), assign=True)
        self.eager, self.ours = reference.image_encoder.eval(), ours.image_encoder.eval()
        self.half = deepcopy(self.ours)
        cast_encoder(self.half, torch.bfloat16, torch.float32)
        self.image = torch.randn(1, 3, settings.image_size, settings.image_size)
        self.block = settings.encoder_global_blocks[0]
        self.tokens = torch.randn(1, *settings.grid_size, settings.encoder_dim)

    def encoders(self) -> dict[str, Callable[[], Tensor]]:
        """Image -> (1, prompt_embed_dim, grid, grid)."""
        ways = {EAGER: lambda: self.eager(self.image), OURS: lambda: self.ours(self.image)}
        return ways | ({HALF: lambda: self.half(self.image)} if cpu_has_bf16() else {})

    def attentions(self) -> dict[str, Callable[[], Tensor]]:
        """Tokens of a global block -> the same shape."""
        eager, ours = (encoder.blocks[self.block].attn for encoder in (self.eager, self.ours))
        return {
            EAGER: lambda: eager(self.tokens),
            OURS: lambda: ours(self.tokens),
            FOLDED: lambda: ours(self.tokens, attend_folded),
        }


@torch.no_grad()
def compare(ways: Mapping[str, Callable[[], Tensor]], rounds: int) -> dict[str, Runs]:
    """Alternating runs of ways to the same result; an uncounted run of each is checked first."""
    expected = ways[EAGER]()
    for name, way in ways.items():
        difference = float((way() - expected).abs().max() / expected.abs().max()) if name != EAGER else 0.0
        tolerance = TOLERANCE_OF_HALF if name == HALF else TOLERANCE
        assert difference < tolerance, f"{name} is off by {difference:.1e} of the largest value"
    return take_turns(ways, rounds, warm_up=0)


def to_claims(size: str, encoder: Mapping[str, Runs]) -> list[Claim]:
    """The claims for ViT-B; the tiny SAM has no bars."""
    is_promised = size == "medium"
    about = f"SAM {'ViT-B 1024' if is_promised else 'of a tiny size'}, one image, against segment_anything"
    ours, eager = encoder[OURS], encoder[EAGER]
    speed = {"bar": 1.2, "goal": 2.0} if is_promised else {}
    claims = [Claim(name=f"{about}, times faster", value=ours.times_faster(eager), **speed)]
    if half := encoder.get(HALF):
        speed = {"bar": 2.0, "goal": 3.5} if is_promised else {}
        claims.append(
            Claim(name=f"{about}, in bfloat16, times faster", value=half.times_faster(eager), **speed)
        )
    if ours.peak_bytes is not None and eager.peak_bytes:
        memory = {"bar": 1 / 2, "goal": 1 / 4} if is_promised else {}
        share = ours.peak_bytes / eager.peak_bytes
        claims.append(
            Claim(name=f"{about}, share of extra peak memory", value=share, at_least=False, **memory)
        )
    return claims


def runs_table(parts: Mapping[str, Mapping[str, Runs]]) -> str:
    """Markdown: seconds and memory of every way."""
    lines = [
        "| part | way | seconds | times faster | extra peak memory, MB | share |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for part, runs in parts.items():
        eager = runs[EAGER]
        for name, run in runs.items():
            peak, share = "-", "-"
            if run.peak_bytes is not None and eager.peak_bytes:
                peak, share = f"{run.peak_bytes / 1e6:.0f}", f"{run.peak_bytes / eager.peak_bytes:.3f}"
            lines.append(
                f"| {part} | {name} | {run.median:.3f} | {run.times_faster(eager):.2f} | {peak} | {share} |"
            )
    return "\n".join(lines)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = script_parser("benchmarks.sam", __doc__)
    parser.add_argument("--size", default="medium", choices=SIZES, help="medium is ViT-B at 1024 pixels")
    parser.add_argument("--rounds", type=int, default=3, help="rounds over which medians are taken")
    parser.add_argument("--quick", action="store_true", help="a tiny SAM")
    parser.add_argument("--out", default="runs/benchmarks/sam.json", help="JSON file to write")
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.size = "tiny"
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    torch.set_num_threads(1)
    bench = Bench(settings_of(arguments.size))
    parts = {
        "encoder": compare(bench.encoders(), arguments.rounds),
        "global attention": compare(bench.attentions(), arguments.rounds),
    }
    claims = to_claims(arguments.size, parts["encoder"])
    print(f"{claims_table(claims)}\n\n{runs_table(parts)}")
    results = {part: {name: run.to_dict() for name, run in runs.items()} for part, runs in parts.items()}
    write_results(arguments.out, vars(arguments), claims, results=results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
