"""A training step, ours against the released recipe's, on the same weights: seconds and peak memory.

    python -m benchmarks.train_step            # medium: prints Markdown, writes runs/benchmarks/train_step.json
    python -m benchmarks.train_step --quick    # tiny: seconds

The batch is 2 images of 640x480 with 5 referring conversations each, as RefCOCO's are. A step is forward, backward
and AdamW's update, in float32 with one thread; the batch is prepared before. Ours packs the conversations of an
image into one row; with the cache it reads SAM's embeddings from files; with encoders in bfloat16
(--encoder_precision, where the CPU has it) its losses agree within 1 %. "Language" is CLIP and LLaMA alone, forward
and backward. Growth is our step with one image and 1 or 10 conversations. Ways alternate and each number is a median
over the rounds. A round of medium takes minutes, mostly for the reference, so one round is the default and its
numbers have no spread; use `--rounds 3` for numbers to publish.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace

import cv2
import torch
from torch import Tensor, nn

from benchmarks import script_parser
from benchmarks.measure import Claim, Runs, claims_table, take_turns, write_results
from benchmarks.models import SIZES, build
from benchmarks.reference_model import PlainModel, plain_batch
from benchmarks.scenes import Scene, make_scene
from model.decoders.sam import SamSegmenter
from model.encoder_precision import cast_encoder, cpu_has_bf16
from model.inputs import Levels, ModelInputs
from model.losses import learned_positions, text_cross_entropy
from model.text.packing import packed_attention
from utils.training.sam_cache import SamCache

LOSS_TOLERANCE = 1e-4  # relative; all ways compute the same loss
LOSS_TOLERANCE_OF_HALF = 0.01
PARTS = ("step", "language", "growth")
REFERENCE, OURS, CACHED = "reference", "ours", "ours, embeddings from the cache"
HALF = "ours, image encoders in bfloat16"


class Bench:
    """One model and the optimizer that all ways share."""

    def __init__(self, size: str, *, seed: int = 0) -> None:
        self.model, self.processor = build(size, lora=True, seed=seed)
        self.plain = PlainModel(self.model)
        self.half: tuple[nn.Module, nn.Module] | None = None
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        # Learning rate 0: all the work of a step without changing the weights, so that all ways have the same loss.
        self.optimizer = torch.optim.AdamW(trained, lr=0.0, betas=(0.9, 0.95), weight_decay=0.0)

    def inputs(self, scene: Scene, *, packed: bool) -> ModelInputs:
        """Inputs of the model's forward pass."""
        return self.processor.collate(
            scene.images, scene.conversations, scene.owners, masks=scene.masks, pack_rows=packed
        )

    def step(self, loss: Tensor, *, update: bool = True) -> float:
        """Backward and update after a forward pass; returns the loss."""
        loss.backward()
        if update:
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.item()

    def our_loss(self, inputs: ModelInputs, embeddings: Levels | None = None) -> Tensor:
        """The loss of the model's forward pass, from SAM's pixels or from its embeddings."""
        if embeddings is not None:
            inputs = replace(inputs, sam_images=None, sam_embeddings=embeddings)
        return self.model(**inputs.fields()).loss

    @contextmanager
    def half_encoders(self) -> Iterator[None]:
        """The image encoders in bfloat16 inside the block."""
        sam, llava = self.model.sam, self.model.base_vlm.model
        exact = sam.image_encoder, llava.vision_tower
        if self.half is None:
            self.half = deepcopy(exact)
            for encoder in self.half:
                cast_encoder(encoder, torch.bfloat16, torch.float32)
        sam.image_encoder, llava.vision_tower = self.half
        try:
            yield
        finally:
            sam.image_encoder, llava.vision_tower = exact

    def half_step(self, inputs: ModelInputs) -> float:
        """Our step with the image encoders in bfloat16."""
        with self.half_encoders():
            return self.step(self.our_loss(inputs))

    def our_language_loss(self, inputs: ModelInputs) -> Tensor:
        """The loss of CLIP and the language model alone, computed as in `forward`."""
        model = self.model
        features = model.image_features(inputs.vlm_images)
        embeddings = model.embed(inputs.input_ids, features.select(inputs.image_of_row))
        mask = packed_attention(inputs.segment_ids)
        states = model.language_states(embeddings, mask, inputs.position_ids)
        rows, columns = learned_positions(inputs.labels)
        return text_cross_entropy(states[rows, columns - 1], inputs.labels[rows, columns], model.text_logits)


def compare_steps(
    bench: Bench, scene: Scene, embeddings: Levels, rounds: int, warm_up: int
) -> dict[str, Runs]:
    """The whole step: the reference's, ours, and ours with SAM's embeddings from files."""
    packed = bench.inputs(scene, packed=True)
    plain = plain_batch(bench.model, bench.inputs(scene, packed=False))
    with tempfile.TemporaryDirectory() as folder:
        read = stored_embeddings(bench.model.sam, folder, embeddings)
        ways = {
            REFERENCE: lambda: bench.step(bench.plain.losses(plain)["total"]),
            OURS: lambda: bench.step(bench.our_loss(packed)),
            CACHED: lambda: bench.step(bench.our_loss(packed, read())),
        }
        if cpu_has_bf16():
            with bench.half_encoders():  # cast before anything is measured
                ways[HALF] = lambda: bench.half_step(packed)
        return compare(ways, rounds, warm_up)


def compare_language(bench: Bench, scene: Scene, rounds: int, warm_up: int) -> dict[str, Runs]:
    """CLIP and the language model, forward and backward."""
    packed = bench.inputs(scene, packed=True)
    plain = plain_batch(bench.model, bench.inputs(scene, packed=False))
    ways = {
        REFERENCE: lambda: bench.step(bench.plain.language_loss(plain), update=False),
        OURS: lambda: bench.step(bench.our_language_loss(packed), update=False),
    }
    return compare(ways, rounds, warm_up)


def compare(ways: Mapping[str, Callable[[], float]], rounds: int, warm_up: int) -> dict[str, Runs]:
    """Alternating runs of ways to the same loss."""
    losses: dict[str, float] = {}
    runs = take_turns(
        {name: lambda name=name, way=way: losses.update({name: way()}) for name, way in ways.items()},
        rounds,
        warm_up=warm_up,
    )
    for name, loss in losses.items():
        difference = abs(loss / losses[REFERENCE] - 1)
        tolerance = LOSS_TOLERANCE_OF_HALF if name == HALF else LOSS_TOLERANCE
        assert difference < tolerance, f"{name} computes another loss: {losses}"
    return runs


def compare_growth(
    bench: Bench, counts: Sequence[int], embeddings: Levels, rounds: int, warm_up: int
) -> dict[str, Runs]:
    """Our step for one image with different numbers of conversations, with and without SAM's encoder.

    Args:
        embeddings: of any one image: their values do not change the time.
    """
    ways = {}
    for count in counts:
        inputs = bench.inputs(make_scene(bench.processor, 1, count), packed=True)
        ways[growth_name(count)] = lambda i=inputs: bench.step(bench.our_loss(i))
        ways[growth_name(count, encoded=True)] = lambda i=inputs: bench.step(bench.our_loss(i, embeddings))
    return take_turns(ways, rounds, warm_up=warm_up)


def growth_name(count: int, *, encoded: bool = False) -> str:
    return f"conversations: {count}{', image encoded before' if encoded else ''}"


def encode(bench: Bench, scene: Scene) -> Levels:
    """What SAM's encoder gives."""
    inputs = bench.inputs(scene, packed=True)
    return bench.model.sam.encode(inputs.sam_images, inputs.resized_sizes)


def stored_embeddings(sam: SamSegmenter, folder: str, embeddings: Levels) -> Callable[[], Levels]:
    """Stores embeddings in a training cache; returns a function that reads them from its files and checks them."""
    cache = SamCache.of(sam, folder)
    keys = [f"{index:040x}" for index in range(len(embeddings[0]))]
    for key, *embedding in zip(keys, *embeddings, strict=True):
        cache.store(key, tuple(embedding))
    return lambda: tuple(map(torch.stack, zip(*(cache.load(key) for key in keys), strict=True)))


# ---------------------------------------------------------------------------------------------- output


def to_claims(
    size: str, shape: str, parts: Mapping[str, Mapping[str, Runs]], counts: Sequence[int]
) -> list[Claim]:
    """The claims for the medium size, of the measured parts; other sizes have no bars."""

    def claim(name: str, value: float, bar: float, goal: float, *, at_least: bool = True) -> Claim:
        promised = {"bar": bar, "goal": goal} if size == "medium" else {}
        return Claim(name=f"{name}, {size}", value=value, at_least=at_least, **promised)

    claims = []
    if steps := parts.get("step"):
        ours, cached = (steps[way].times_faster(steps[REFERENCE]) for way in (OURS, CACHED))
        claims += [
            claim(f"training step, {shape}, times faster", ours, 1.7, 2.5),
            claim("the same step with SAM embeddings from the cache, times faster", cached, 5, 8),
        ]
        if half := steps.get(HALF):
            ratio = half.times_faster(steps[REFERENCE])
            claims.append(
                claim("the same step with image encoders in bfloat16, times faster", ratio, 2.5, 3.5)
            )
    if language := parts.get("language"):
        ratio = language[OURS].times_faster(language[REFERENCE])
        claims.append(claim("language part alone, forward and backward, times faster", ratio, 2.5, 3.5))
    if growth := parts.get("growth"):
        whole, encoded = (
            growth[growth_name(counts[0], encoded=e)].times_faster(growth[growth_name(counts[1], encoded=e)])
            for e in (False, True)
        )
        about = f"step time, {counts[0]} -> {counts[1]} conversations of an image"
        claims += [
            claim(f"growth of {about}", whole, 2, 1.5, at_least=False),
            Claim(name=f"the same without SAM's encoder, {size}", value=encoded, at_least=False),
        ]
    return claims


def runs_table(parts: Mapping[str, Mapping[str, Runs]]) -> str:
    """Markdown: seconds and memory of every way."""
    lines = ["| part | way | seconds | rounds | peak growth, MB |", "|---|---|---:|---:|---:|"]
    for part, runs in parts.items():
        for name, run in runs.items():
            peak = "-" if run.peak_bytes is None else f"{run.peak_bytes / 1e6:.0f}"
            lines.append(f"| {part} | {name} | {run.median:.3f} | {len(run.seconds)} | {peak} |")
    return "\n".join(lines)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = script_parser("benchmarks.train_step", __doc__)
    parser.add_argument("--size", default="medium", choices=SIZES, help="of the model")
    parser.add_argument("--num_images", type=int, default=2, help="images of the batch")
    parser.add_argument("--num_conversations", type=int, default=5, help="conversations of each image")
    parser.add_argument("--growth", type=int, nargs=2, default=(1, 10), help="conversations of one image")
    parser.add_argument("--parts", default=",".join(PARTS), help="what to measure, separated by commas")
    parser.add_argument("--rounds", type=int, default=1, help="rounds over which medians are taken")
    parser.add_argument("--warm_up", type=int, default=0, help="uncounted rounds before those")
    parser.add_argument(
        "--quick", action="store_true", help="the tiny size, three rounds after one to warm up"
    )
    parser.add_argument("--out", default="runs/benchmarks/train_step.json", help="JSON file to write")
    arguments = parser.parse_args(argv)
    if unknown := set(arguments.parts.split(",")) - set(PARTS):
        parser.error(f"--parts: unknown {', '.join(sorted(unknown))}; known: {', '.join(PARTS)}")
    if arguments.quick:
        arguments.size, arguments.rounds, arguments.warm_up = "tiny", 3, 1
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    bench = Bench(arguments.size)
    scene = make_scene(bench.processor, arguments.num_images, arguments.num_conversations)
    wanted = arguments.parts.split(",")
    embeddings = None if wanted == ["language"] else encode(bench, scene)
    turns = arguments.rounds, arguments.warm_up
    measured: dict[str, Callable[[], dict[str, Runs]]] = {
        "step": lambda: compare_steps(bench, scene, embeddings, *turns),
        "language": lambda: compare_language(bench, scene, *turns),
        "growth": lambda: compare_growth(
            bench, arguments.growth, tuple(level[:1] for level in embeddings), *turns
        ),
    }
    parts = {part: measured[part]() for part in wanted}
    shape = f"{arguments.num_images} images x {arguments.num_conversations} referring conversations"
    claims = to_claims(arguments.size, shape, parts, arguments.growth)
    print(f"{claims_table(claims)}\n\n{runs_table(parts)}")
    results = {part: {name: run.to_dict() for name, run in runs.items()} for part, runs in parts.items()}
    write_results(arguments.out, vars(arguments), claims, results=results, tokens=count_tokens(bench, scene))
    return 0


def count_tokens(bench: Bench, scene: Scene) -> dict[str, int]:
    """Tokens of the language model: of an image, and of all rows on either side, padding included."""
    sizes = {
        name: bench.inputs(scene, packed=packed).input_ids.numel()
        for name, packed in ((REFERENCE, False), (OURS, True))
    }
    return {"image": bench.processor.images.num_image_tokens, **sizes}


if __name__ == "__main__":
    sys.exit(main())
