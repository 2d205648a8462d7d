"""What the data cost a run on many GPUs, by hand."""

from dataclasses import replace

import pytest

from utils.config.training import TrainConfig
from utils.costs.loading import FILES, SHARD_BYTES, SHARDS, Disk, loading, shards_hit
from utils.costs.prediction import Prediction

CONFIG = TrainConfig(version="x", epochs=10, steps_per_epoch=100, workers=4)
# 16 GPUs in two nodes, 320 images in a step of 2 s.
STEP = Prediction(stage=2, gpus=16, images=320, compute=2.0, communication=1.0, sent=0.0)
DISK = Disk(
    num_images=10_000,
    sample_bytes=256_000,
    files_per_sample=2.0,
    open_ms=5.0,
    server_opens=10_000,
    loader_rate=50.0,
)


def test_files_are_opened_and_read_at_every_draw():
    found = loading(STEP, DISK, CONFIG, FILES)
    assert (found.limit, found.images) == ("arithmetic", 160.0)
    assert found.opened == pytest.approx(160 * 2)
    assert found.node_rate == pytest.approx(160 * 256_000 / 2)
    assert found.node_bytes == pytest.approx(1000 * 320 / 2 * 256_000)


def test_shards_are_copied_once_by_each_node():
    found = loading(STEP, DISK, CONFIG, SHARDS)
    assert (found.limit, found.images) == ("arithmetic", 160.0)
    assert found.node_bytes == pytest.approx(10 * SHARD_BYTES), "all ten shards are hit by 160,000 draws"
    assert found.opened == pytest.approx(2 * 10 / 2000)
    assert found.node_rate == pytest.approx(10 * SHARD_BYTES / 2000)


def test_few_draws_hit_few_shards():
    assert shards_hit(1, DISK) == pytest.approx(1)
    assert shards_hit(2, DISK) == pytest.approx(1.9)
    assert shards_hit(5, replace(DISK, num_images=1)) == 1


@pytest.mark.parametrize(
    ("change", "files", "shards"),
    [
        # 20 images of a GPU in a step, by 4 processes: 5 x (20 + 2 x 5 ms) is below 2 s.
        ({}, "arithmetic", "arithmetic"),
        ({"open_ms": 200.0}, "loader", "arithmetic"),
        ({"loader_rate": 2.0}, "loader", "loader"),
        ({"server_opens": 100.0}, "openings", "arithmetic"),
    ],
)
def test_what_takes_longest_limits(change, files, shards):
    disk = replace(DISK, **change)
    assert [loading(STEP, disk, CONFIG, data).limit for data in (FILES, SHARDS)] == [files, shards]
    if files == "openings":
        assert loading(STEP, disk, CONFIG, FILES).opened == pytest.approx(100.0)
    slow = replace(STEP, communication=9.0)
    assert loading(slow, DISK, CONFIG, SHARDS).limit == "communication"
