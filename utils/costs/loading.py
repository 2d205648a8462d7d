"""What the data cost a training run on many GPUs: files opened, bytes read by a node, and whether that limits.

`python -m utils.costs.flops` prints it for a configuration, from files and from shards (docs/data.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from utils.config.training import TrainConfig
from utils.costs.assumptions import (
    FILES_PER_SAMPLE,
    GPUS_PER_NODE,
    LOADER_RATE,
    NUM_IMAGES,
    OPEN_MS,
    SERVER_OPENS,
)
from utils.costs.prediction import Prediction

SHARD_BYTES = 256e6
FILES, SHARDS = "files", "shards"


@dataclass(frozen=True, kw_only=True)
class Disk:
    """The data, and where they lie."""

    num_images: int = NUM_IMAGES
    sample_bytes: int
    files_per_sample: float = FILES_PER_SAMPLE
    open_ms: float = OPEN_MS
    server_opens: float = SERVER_OPENS  # per second, for all nodes
    loader_rate: float = LOADER_RATE  # images/s of a loading process that does not wait


@dataclass(frozen=True, kw_only=True)
class Loading:
    """Reading the data of a whole run, from files or from shards."""

    data: str  # FILES or SHARDS
    gpus: int
    limit: str  # what takes longest
    images: float  # per second, all GPUs together
    opened: float  # files or shards per second, all nodes together
    node_rate: float  # bytes/s that a node reads from the disk, on average
    node_bytes: float  # bytes that a node reads in the whole run

    @property
    def nodes(self) -> int:
        return num_nodes(self.gpus)


def num_nodes(gpus: int) -> int:
    return math.ceil(gpus / GPUS_PER_NODE)


def loading(step: Prediction, disk: Disk, config: TrainConfig, data: str) -> Loading:
    """What a run of optimizer steps like `step` reads, and how fast it can be.

    Arithmetic and communication overlap, and so does loading, in the `--workers` of each GPU. From files, every draw
    reads its files again, and each of them is an opening that the loading process waits for. From shards, a node
    copies the shards that its draws hit, once, and opens each once for the copy: on average over the run that is next
    to nothing. Annotations, which are read once at the start, are left out.
    """
    per_gpu = step.images / step.gpus
    waiting = disk.files_per_sample * disk.open_ms / 1000 if data == FILES else 0.0
    workers = max(config.workers, 1)
    times = {
        "arithmetic": step.compute,
        "communication": step.communication,
        "loader": per_gpu * (1 / disk.loader_rate + waiting) / workers,
    }
    if data == FILES:
        times["openings"] = step.images * disk.files_per_sample / disk.server_opens
    limit = max(times, key=lambda name: times[name])
    seconds = times[limit]
    num_steps = config.epochs * config.steps_per_epoch
    draws = num_steps * step.images / num_nodes(step.gpus)  # of a node in the run
    run_seconds = num_steps * seconds
    if data == FILES:
        node_bytes, opened = draws * disk.sample_bytes, draws * disk.files_per_sample
    else:
        hit = shards_hit(draws, disk)
        node_bytes, opened = hit * SHARD_BYTES, hit
    return Loading(
        data=data,
        gpus=step.gpus,
        limit=limit,
        images=step.images / seconds,
        opened=opened * num_nodes(step.gpus) / run_seconds,
        node_rate=node_bytes / run_seconds,
        node_bytes=node_bytes,
    )


def shards_hit(draws: float, disk: Disk) -> float:
    """The expected number of shards that some of `draws` uniform draws fall into."""
    num_shards = max(disk.num_images * disk.sample_bytes / SHARD_BYTES, 1.0)
    return num_shards * -math.expm1(draws * math.log1p(-1 / num_shards)) if num_shards > 1 else 1.0
