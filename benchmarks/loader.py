"""Samples per second of one loading process, ours against the plain loader of benchmarks/reference.py.

    python -m benchmarks.loader                       # prints a Markdown table, writes runs/benchmarks/loader.json
    python -m benchmarks.loader --sizes 640x480,640x427 --rounds 9

Images are synthetic (shapes, shading, noise): JPEG files of 640x480 pixels, with labels of 150 classes in ADE20K's
layout and polygons in RefCOCO's. Ways alternate, and each number is a median over the rounds. Time is CPU time of
this process with one thread, so that other programs on the machine hardly matter.
"""

from __future__ import annotations

import argparse
import json
import pickle
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil

from benchmarks import TOY, script_parser
from benchmarks.measure import take_turns, write_json
from benchmarks.reference import PlainLoader, num_bytes, path_of
from model.backbones.clip_images import ClipImages
from model.processor import LasagnaProcessor
from model.text.format import SequenceFormat
from model.text.tokenizer_files import load_tokenizer
from model.text.tokens import add_special_tokens
from utils.data.base import Dataset
from utils.data.collate import Collate, LengthLimit
from utils.data.datasets.ade20k import Ade20k
from utils.data.datasets.refer import RefCoco
from utils.data.mixture import Mixture
from utils.data.types import Recipe

TOKENIZER = TOY / "llava"
SAM_SIZE, CLIP_SIZE, CLIP_PATCH = 1024, 224, 14  # as in the 7B recipe
NUM_CLASSES, NUM_REGIONS, NUM_OBJECTS = 150, 10, 5
JPEG_QUALITY = 92
# Bars for images of 640x480: samples per second and bytes of a batch, relative to the plain loader.
GOAL_SIZE, GOAL_EXACT, GOAL_FAST, GOAL_BYTES = "640x480", 1.7, 3.0, 0.25
WAYS = ("plain", "ours", "ours, --fast_resize")


def make_image(rng: np.random.Generator, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """An image (height, width, 3) uint8 and its label (height, width) uint8: 0 unlabelled, 1..150."""
    fields = rng.random((NUM_REGIONS, 5, 6)).astype(np.float32)
    fields = np.stack([cv2.resize(field, (width, height), interpolation=cv2.INTER_CUBIC) for field in fields])
    region = fields.argmax(axis=0)  # (height, width)
    colours = rng.uniform(30, 220, (NUM_REGIONS, 3))
    shading = 40 * (fields.max(axis=0) - 0.5)[..., None]
    grain = cv2.GaussianBlur(rng.normal(0, 25, (height, width, 3)), (0, 0), 0.8)
    values = rng.permutation(NUM_CLASSES)[:NUM_REGIONS] + 1
    values[0] = 0
    return (colours[region] + shading + grain).clip(0, 255).astype(np.uint8), values[region].astype(np.uint8)


def make_polygon(rng: np.random.Generator, height: int, width: int, num_points: int = 40) -> list[float]:
    """A bumpy outline: x, y, x, y, ..."""
    angles = np.linspace(0, 2 * np.pi, num_points, endpoint=False)
    radius = rng.uniform(0.1, 0.3) * height * (1 + 0.2 * rng.normal(size=num_points))
    x = rng.uniform(0.2, 0.8) * width + radius * np.cos(angles)
    y = rng.uniform(0.2, 0.8) * height + radius * np.sin(angles)
    return np.stack([x.clip(0, width), y.clip(0, height)], axis=1).round(2).ravel().tolist()


def write_data(root: Path, height: int, width: int, num_images: int) -> None:
    """`num_images` images as ADE20K and, with expressions, as RefCOCO."""
    rng = np.random.default_rng(0)
    refs, images, annotations = [], [], []
    for number in range(num_images):
        pixels, label = make_image(rng, height, width)
        stem = f"ADE_train_{number:08d}"
        file = Image.fromarray(pixels)
        file.save(path_of(root, "ade20k/images/training", f"{stem}.jpg"), quality=JPEG_QUALITY)
        Image.fromarray(label).save(path_of(root, "ade20k/annotations/training", f"{stem}.png"))
        file_name = f"COCO_train2014_{number:012d}.jpg"
        folder = "refer_seg/images/mscoco/images/train2014"
        file.save(path_of(root, folder, file_name), quality=JPEG_QUALITY)
        images.append({"id": number, "file_name": file_name, "height": height, "width": width})
        for k in range(NUM_OBJECTS):
            ann_id = number * NUM_OBJECTS + k
            polygon = make_polygon(rng, height, width)
            annotations.append(
                {"id": ann_id, "image_id": number, "category_id": 1, "segmentation": [polygon]}
            )
            sentences = [{"sent": f"the {side} thing number {k}"} for side in ("left", "upper")]
            refs.append(
                {
                    "ref_id": ann_id,
                    "ann_id": ann_id,
                    "image_id": number,
                    "split": "train",
                    "sentences": sentences,
                }
            )
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
    path_of(root, "refer_seg/refcoco", "instances.json").write_text(json.dumps(content), encoding="utf-8")
    path_of(root, "refer_seg/refcoco", "refs(unc).p").write_bytes(pickle.dumps(refs))


def build_processor() -> LasagnaProcessor:
    """The 7B recipe's image sizes, with the toy tokenizer."""
    format = SequenceFormat.named("paper")
    tokenizer = load_tokenizer(TOKENIZER)
    add_special_tokens(tokenizer, format)
    clip = CLIPImageProcessorPil(
        size={"shortest_edge": CLIP_SIZE}, crop_size={"height": CLIP_SIZE, "width": CLIP_SIZE}
    )
    return LasagnaProcessor(
        tokenizer=tokenizer,
        images=ClipImages(clip=clip, num_image_tokens=(CLIP_SIZE // CLIP_PATCH) ** 2),
        sam_image_size=SAM_SIZE,
        format=format,
    )


def ways_of(dataset: Dataset, processor: LasagnaProcessor) -> dict[str, Callable[[Sequence[int]], Any]]:
    """Way -> function that makes a batch of samples; ours goes through training's mixture and collate."""
    recipe = Recipe(format=processor.format)
    mixture = Mixture([dataset], [1.0], recipe=recipe, seed=0, fit=LengthLimit(processor, 1024))
    plain = PlainLoader(dataset, processor, recipe)

    def ours(fast_resize: bool) -> Callable[[Sequence[int]], Any]:
        collate = Collate(processor, fast_resize=fast_resize, pack_rows=True)
        return lambda indices: collate([mixture[index] for index in indices]).inputs

    return dict(zip(WAYS, (plain.batch, ours(False), ours(True)), strict=True))


def measure(dataset: Dataset, processor: LasagnaProcessor, arguments: argparse.Namespace) -> dict[str, Any]:
    """Samples per CPU second and bytes per sample of each way, and their ratios to the plain one."""
    ways = ways_of(dataset, processor)
    batches = [
        range(start, start + arguments.batch_size)
        for start in range(0, arguments.num_batches * arguments.batch_size, arguments.batch_size)
    ]
    num_samples = len(batches) * arguments.batch_size
    total_bytes = {way: sum(num_bytes(make(batch)) for batch in batches) for way, make in ways.items()}

    def all_batches(make: Callable[[Sequence[int]], Any]) -> None:
        for batch in batches:
            make(batch)

    rounds = {way: partial(all_batches, make) for way, make in ways.items()}
    runs = take_turns(rounds, arguments.rounds, warm_up=0, memory=False)
    return {
        way: {
            "samples_per_second": num_samples / runs[way].median,
            "times_plain": runs[way].times_faster(runs["plain"]),
            "megabytes_per_sample": total_bytes[way] / num_samples / 1e6,
            "bytes_of_plain": total_bytes[way] / total_bytes["plain"],
        }
        for way in ways
    }


def to_table(results: Sequence[dict[str, Any]]) -> str:
    """Markdown, with goals where there are any."""
    lines = [
        "| images | data set | way | samples/s | times plain | goal | MB a sample | of plain | goal |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for result in results:
        goals = dict(zip(WAYS, (None, GOAL_EXACT, GOAL_FAST), strict=True))
        for way, numbers in result["ways"].items():
            goal = goals[way] if result["size"] == GOAL_SIZE else None
            lines.append(
                f"| {result['size']} | {result['dataset']} | {way} | {numbers['samples_per_second']:.1f} | "
                f"{numbers['times_plain']:.2f} | {f'>= {goal}' if goal else ''} | "
                f"{numbers['megabytes_per_sample']:.2f} | {numbers['bytes_of_plain']:.2f} | "
                f"{f'<= {GOAL_BYTES}' if goal else ''} |"
            )
    return "\n".join(lines)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = script_parser("benchmarks.loader", __doc__)
    parser.add_argument(
        "--sizes", default="640x480,320x240,640x427", help="WIDTHxHEIGHT of the images, separated by commas"
    )
    parser.add_argument("--num_images", type=int, default=24, help="images of each size")
    parser.add_argument("--batch_size", type=int, default=2, help="images of a batch")
    parser.add_argument("--num_batches", type=int, default=12, help="batches of one round")
    parser.add_argument("--rounds", type=int, default=7, help="rounds over which medians are taken")
    parser.add_argument("--out", default="runs/benchmarks/loader.json", help="JSON file to write")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    processor = build_processor()
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for size in arguments.sizes.split(","):
            width, height = (int(side) for side in size.split("x"))
            root = Path(folder) / size
            write_data(root, height, width, arguments.num_images)
            for kind in (Ade20k, RefCoco):
                ways = measure(kind(root, "train"), processor, arguments)
                results.append({"size": size, "dataset": kind.name, "ways": ways})
    print(to_table(results))
    settings = {**vars(arguments), "torch": torch.__version__, "pillow": Image.__version__}
    write_json(arguments.out, {"settings": settings, "results": results})
    return 0


if __name__ == "__main__":
    sys.exit(main())
