"""Answers to complex queries: decoded in passes over the whole answer, against one token at a time.

    python -m benchmarks.answer                      # tiny and medium: Markdown, runs/benchmarks/answer.json
    python -m benchmarks.answer --quick              # tiny, one round, in seconds; bars do not apply
    python -m benchmarks.answer --version FOLDER     # also count the passes of a trained model

One image, all of ADE20K's names in one query; weights and answers are the same for every way (asserted). Neither
size is trained to answer with [SEG] and [NEG], so a constant added to the logit of [SEG] makes the chosen number of
classes present. SAM's image encoder is excluded everywhere. "Language" is all work from the names and the encoded
image to the choices and the hidden state of each mask; "CLIP" and "masks" (mask decoder and resizing to 640x480) are
measured separately and are the same for every way.

The released recipe runs the whole sequence again for each token, which takes a quarter of an hour for one answer of
medium. Its time is estimated: single tokens are timed at four lengths, interpolated linearly and summed over the
answer - once with CLIP counted once per answer and once with CLIP for every token, as that recipe runs it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import torch

from benchmarks import script_parser
from benchmarks.measure import Claim, Runs, claims_table, take_turns, write_results
from benchmarks.models import SIZES, build
from benchmarks.queries import Asker, Query, make_query, single_tokens
from model.checkpoints.load import load_model
from utils.data.class_lists import load_class_list
from utils.toy.scene import CLASSES, draw_scene

SCENE_SEED = 7_654_321
CLIP, MASKS, TOKENS = "CLIP", "masks", "language, token by token"
RELEASED = "language, one token without cache, at"


# ---------------------------------------------------------------------------------------------- measuring


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The runs of one size, by part and way, and their queries."""

    size: str
    runs: dict[str, Runs]
    queries: dict[int, Query]  # by the number of classes asked for

    @property
    def asked(self) -> tuple[int, int]:
        """The number of classes of the short and of the long query."""
        return min(self.queries), max(self.queries)

    def seconds(self, *parts: str) -> np.ndarray:
        """(rounds,) sum over consecutive parts."""
        return np.sum([self.runs[part].seconds for part in parts], axis=0)

    def without_cache(self, *, clip_every_token: bool) -> np.ndarray | None:
        """(rounds,) seconds from the pixels to the choices of the long query, estimated; None if not measured."""
        at = {int(name.split()[-1]): run for name, run in self.runs.items() if name.startswith(RELEASED)}
        if not at:
            return None
        tokens = np.arange(self.queries[self.asked[1]].plain.num_tokens)
        rounds = np.stack([run.seconds for run in at.values()], axis=1)
        language = np.array([np.interp(tokens, list(at), seconds).sum() for seconds in rounds])
        return language + self.seconds(CLIP) * (len(tokens) if clip_every_token else 1)


def measure(size: str, asked: Sequence[int], arguments: argparse.Namespace) -> Measured:
    """All ways of one size, alternating."""
    asker = Asker(*build(size))
    names = load_class_list("ade20k")
    queries = {n: make_query(asker, names[:n], arguments.num_present) for n in sorted(asked)}
    long = queries[max(queries)]
    prepared = asker.processor.images.prepare(long.image)
    pixels = asker.processor.images.collate([prepared])
    ways: dict[str, Callable[[], Any]] = {
        in_passes_name(n): query.again(query.in_passes) for n, query in queries.items()
    }
    ways |= {
        TOKENS: long.again(long.token_by_token),
        CLIP: lambda: torch.no_grad()(asker.encode)(pixels),
        MASKS: long.draw,
    }
    if size in arguments.without_cache.split(","):
        for position, decide in single_tokens(long, arguments.num_lengths).items():
            ways[f"{RELEASED} {position}"] = long.again(decide)
    return Measured(size=size, runs=take_turns(ways, arguments.rounds, warm_up=0), queries=queries)


def in_passes_name(num_classes: int) -> str:
    return f"language, in passes, {num_classes} classes"


def passes_of_trained(folder: str, num_scenes: int) -> list[int]:
    """Passes over each answer to the toy world's classes, one scene after the other."""
    model, _ = load_model(folder, dtype=torch.float32)
    scenes = (draw_scene(SCENE_SEED, index) for index in range(num_scenes))
    return [model.segment(scene.image, CLASSES).num_passes for scene in scenes]


# ---------------------------------------------------------------------------------------------- output


def to_claims(measured: Measured) -> list[Claim]:
    """The claims; further comparisons have no bars."""
    short, long = measured.asked
    size, seconds = measured.size, measured.seconds
    ours, others = in_passes_name(long), (CLIP, MASKS)

    def ratio(slow: np.ndarray, fast: np.ndarray) -> float:
        return float(np.median(slow / fast))

    against = f"{long}-class answer against token by token with a cache"
    bar, goal = {"tiny": (8, 20), "medium": (3, 6)}[size]
    claims = [
        Claim(
            name=f"{against}, images encoded before, {size}, times faster",
            value=ratio(seconds(TOKENS), seconds(ours)),
            bar=bar,
            goal=goal,
        ),
        Claim(
            name=f"{against}, with CLIP and masks on both sides, {size}, times faster",
            value=ratio(seconds(TOKENS, *others), seconds(ours, *others)),
        ),
    ]
    for clip_every_token, bar, goal in ((False, 50, 100), (True, None, None)):
        recipe = measured.without_cache(clip_every_token=clip_every_token)
        if recipe is not None:
            clip = "for every token, as there" if clip_every_token else "once"
            claims.append(
                Claim(
                    name=f"{long}-class answer against the released recipe, estimated, masks on both sides, "
                    f"CLIP {clip}, {size}, times faster",
                    value=ratio(recipe + seconds(MASKS), seconds(ours, *others)),
                    bar=bar,
                    goal=goal,
                )
            )
    growth, language_growth = (
        ratio(seconds(ours, *parts), seconds(in_passes_name(short), *parts)) for parts in (others, ())
    )
    present = len(measured.queries[long].answer.present_names)
    name = f"growth of answer time, {short} -> {long} classes, {present} present, SAM's encoder aside, {size}"
    return [
        *claims,
        Claim(name=name, value=growth, bar=5, goal=3, at_least=False),
        Claim(name=f"the same, language alone, {size}", value=language_growth, at_least=False),
    ]


def runs_table(results: Sequence[Measured]) -> str:
    """Markdown: seconds of every part and way."""
    lines = ["| size | part and way | seconds | |", "|---|---|---:|---|"]
    for measured in results:
        for name, run in measured.runs.items():
            about = {in_passes_name(n): about_query(query) for n, query in measured.queries.items()}
            lines.append(f"| {measured.size} | {name} | {run.median:.4g} | {about.get(name, '')} |")
    return "\n".join(lines)


def about_query(query: Query) -> str:
    plan = query.plain.plan
    return (
        f"{len(query.answer.present_names)} present, {query.answer.num_passes} passes; "
        f"prompt {query.num_prompt_tokens} tokens, answer {len(plan.token_ids)}"
    )


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = script_parser("benchmarks.answer", __doc__)
    parser.add_argument("--sizes", default=",".join(SIZES), help="sizes of the model, separated by commas")
    parser.add_argument("--asked", type=int, nargs=2, default=(20, 150), help="classes of both queries")
    parser.add_argument("--num_present", type=int, default=10, help="classes present in both")
    parser.add_argument("--rounds", type=int, default=3, help="rounds over which medians are taken")
    parser.add_argument(
        "--without_cache", default="medium", help="sizes to estimate the released recipe for, with commas"
    )
    parser.add_argument("--num_lengths", type=int, default=4, help="lengths at which its tokens are timed")
    parser.add_argument("--version", help="a trained model of the toy world, to count its passes")
    parser.add_argument("--num_scenes", type=int, default=24, help="toy scenes for --version")
    parser.add_argument("--quick", action="store_true", help="the tiny size, one round, without bars")
    parser.add_argument("--out", default="runs/benchmarks/answer.json", help="JSON file to write")
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.sizes, arguments.rounds = "tiny", 1
    if unknown := set(arguments.sizes.split(",")) - set(SIZES):
        parser.error(f"--sizes: unknown {', '.join(sorted(unknown))}; known: {', '.join(SIZES)}")
    if not 0 < arguments.num_present < min(arguments.asked):
        parser.error(f"--num_present {arguments.num_present} must be 1 or more, and less than --asked")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    results = [measure(size, arguments.asked, arguments) for size in arguments.sizes.split(",")]
    claims = [claim for measured in results for claim in to_claims(measured)]
    if arguments.quick:  # one round is not a measurement
        claims = [replace(claim, bar=None, goal=None) for claim in claims]
    passes = passes_of_trained(arguments.version, arguments.num_scenes) if arguments.version else []
    if passes:
        name = f"passes of a trained model, {len(CLASSES)} toy classes, median of {len(passes)} scenes"
        claims.append(Claim(name=name, value=float(np.median(passes)), bar=4, at_least=False))
    print(f"{claims_table(claims)}\n\n{runs_table(results)}")
    numbers = {m.size: {name: run.to_dict() for name, run in m.runs.items()} for m in results}
    queries = {m.size: {n: about_query(query) for n, query in m.queries.items()} for m in results}
    write_results(
        arguments.out, vars(arguments), claims, results=numbers, queries=queries, trained_passes=passes
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
