"""Images per second of one loading process from files and from shards, where every opening takes 5 ms.

    python -m benchmarks.shards                    # prints a Markdown table, writes runs/benchmarks/shards.json
    python -m benchmarks.shards --open_ms 20 --num_samples 500

The data are those of benchmarks/loader.py: JPEG files with labels in ADE20K's layout and with RefCOCO's expressions,
half of the samples each. A network disk or object store is imitated: whatever is opened below the data's folder -
a file, a shard, a part of a shard that a URL is asked for - waits first. The copies in the cache are on a local disk,
and do not. Each measurement is a process of its own, which draws the samples of a run; all ways give the same ones.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from benchmarks import script_parser
from benchmarks.loader import write_data
from benchmarks.measure import write_json
from utils.config.data import DataConfig
from utils.data.mixture import build_train_mixture
from utils.data.shards.cache import use_shard_cache
from utils.data.tools import shard

FILES = "files"
FLAGS = {
    "dataset": "sem_seg||refer_seg",
    "sem_seg_data": "ade20k",
    "refer_seg_data": "refcoco",
    "sample_rates": "1,1",
}
LOCAL = "local://"  # fsspec's driver for files: a URL, as far as the loader is concerned


@dataclass(frozen=True)
class Way:
    """How the data are read."""

    name: str
    dataset: str  # of the flag, with {} for the folder
    cache_gb: float | None = None


WAYS = (
    Way(FILES, FLAGS["dataset"]),
    Way("shards in a folder", "sharded:{}/shards"),
    Way("shards behind a URL, copied first", f"sharded:{LOCAL}{{}}/shards"),
    Way("shards behind a URL, no room in the cache", f"sharded:{LOCAL}{{}}/shards", cache_gb=0),
)


def measure(way: Way, root: Path, open_ms: float, num_samples: int, seed: int, results: Any) -> None:
    """In a process of its own: opens the data, draws samples; sends seconds, openings and a hash of the samples."""
    num_opened = 0

    def wait(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal num_opened
        if event == "open" and isinstance(arguments[0], str) and arguments[0].startswith(str(root)):
            num_opened += 1
            time.sleep(open_ms / 1000)

    cv2.setNumThreads(0)
    with tempfile.TemporaryDirectory() as cache:
        use_shard_cache(cache if way.name != "shards in a folder" else "", way.cache_gb)
        flags = FLAGS if way.name == FILES else {}
        sys.addaudithook(wait)
        digest, start = hashlib.sha256(), time.perf_counter()
        config = replace(
            DataConfig(),
            **flags | {"dataset": way.dataset.format(root)},
            dataset_dir=str(root / "data"),
            seed=seed,
        )
        mixture = build_train_mixture(config, config.sequence_format)
        for index in range(num_samples):
            sample = mixture[index]
            digest.update(sample.image.tobytes() + sample.masks.tobytes())
        results.send((time.perf_counter() - start, num_opened, digest.hexdigest()))


def run(way: Way, root: Path, open_ms: float, num_samples: int, seed: int) -> tuple[float, int, str]:
    """The results of `measure`."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(
        target=measure, args=(way, root, open_ms, num_samples, seed, sender)
    )
    process.start()
    sender.close()
    try:
        found: tuple[float, int, str] = receiver.recv()
        return found
    finally:
        process.join()


def compare(root: Path, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Images and openings per second of each way, without and with waiting; medians over the rounds."""
    rates: dict[tuple[str, float], list[float]] = {}
    opened: dict[str, list[int]] = {way.name: [] for way in WAYS}
    for seed in range(arguments.rounds):
        digests = set()
        for way in WAYS:
            for open_ms in (0.0, arguments.open_ms):
                seconds, num_opened, digest = run(way, root, open_ms, arguments.num_samples, seed)
                rates.setdefault((way.name, open_ms), []).append(arguments.num_samples / seconds)
                opened[way.name].append(num_opened)
                digests.add(digest)
        if len(digests) != 1:
            raise RuntimeError("the ways gave different samples")
    rows = []
    for way in WAYS:
        at_once, waited = (float(np.median(rates[way.name, ms])) for ms in (0.0, arguments.open_ms))
        per_sample = float(np.median(opened[way.name])) / arguments.num_samples
        rows.append(
            {
                "way": way.name,
                "opened_per_sample": per_sample,
                "images_per_second": at_once,
                "images_per_second_waiting": waited,
                "opened_per_second_waiting": waited * per_sample,
            }
        )
    return rows


def to_table(rows: Sequence[dict[str, Any]], open_ms: float) -> str:
    """Markdown."""
    lines = [
        f"| data | opened a sample | images/s, no delay | images/s, {open_ms:g} ms an opening | opened/s | "
        "times files |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        waited = row["images_per_second_waiting"]
        lines.append(
            f"| {row['way']} | {row['opened_per_sample']:.2f} | {row['images_per_second']:.1f} | {waited:.1f} | "
            f"{row['opened_per_second_waiting']:.1f} | {waited / rows[0]['images_per_second_waiting']:.2f} |"
        )
    return "\n".join(lines)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = script_parser("benchmarks.shards", __doc__)
    parser.add_argument("--size", default="640x480", help="WIDTHxHEIGHT of the images")
    parser.add_argument("--num_images", type=int, default=200, help="images of each data set")
    parser.add_argument("--num_samples", type=int, default=200, help="draws of a measurement")
    parser.add_argument("--shard_mb", type=int, default=4, help="size of a shard in MB")
    parser.add_argument("--open_ms", type=float, default=5.0, help="milliseconds that an opening takes")
    parser.add_argument("--rounds", type=int, default=3, help="rounds over which medians are taken")
    parser.add_argument("--out", default="runs/benchmarks/shards.json", help="JSON file to write")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    width, height = (int(side) for side in arguments.size.split("x"))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_data(root / "data", height, width, arguments.num_images)
        flags = [f"--{name}={value}" for name, value in FLAGS.items()]
        where = [
            f"--dataset_dir={root / 'data'}",
            f"--out={root / 'shards'}",
            f"--shard_mb={arguments.shard_mb}",
        ]
        if code := shard.main([*flags, *where]):
            return code
        rows = compare(root, arguments)
    print(to_table(rows, arguments.open_ms))
    write_json(arguments.out, {"settings": vars(arguments), "results": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
