"""The loader benchmark compares two ways to the same pixels, masks and tokens."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from benchmarks import loader
from benchmarks.reference import PIXEL_MEAN, PIXEL_STD
from utils.data.datasets.ade20k import Ade20k
from utils.data.datasets.refer import RefCoco


@pytest.mark.parametrize("kind", [Ade20k, RefCoco])
def test_ours_is_the_plain_way_to_the_last_pixel(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(loader, "SAM_SIZE", 128)
    loader.write_data(tmp_path, 48, 64, num_images=3)
    processor = loader.build_processor()
    ways = loader.ways_of(kind(tmp_path, "train"), processor)
    plain, ours, fast = (ways[way]([0, 1, 2]) for way in loader.WAYS)
    sam = (ours.sam_images.float() - PIXEL_MEAN) / PIXEL_STD
    height, width = sam.shape[-2:]
    assert (height, width) == (96, 128)
    torch.testing.assert_close(plain["images"][..., :height, :width], sam)
    mean, std = (
        torch.tensor(values).view(3, 1, 1)
        for values in (processor.images.clip.image_mean, processor.images.clip.image_std)
    )
    clip = (ours.vlm_images["clip_images"] / 255 - mean) / std
    torch.testing.assert_close(plain["clip_images"], clip, atol=1e-5, rtol=0)
    for theirs, mine in zip(plain["masks"], ours.gt_masks, strict=True):
        assert len(mine)
        assert np.array_equal(theirs.numpy(), mine.numpy())
    assert (fast.vlm_images["clip_images"].int() - ours.vlm_images["clip_images"].int()).abs().max() <= 2
    assert int((ours.labels != -100).sum()) == int((plain["labels"] != -100).sum())


def test_the_command_prints_a_table_and_writes_a_file(tmp_path, capsys):
    out = tmp_path / "results" / "loader.json"
    flags = ["--sizes=64x48", "--num_images=2", "--num_batches=1", "--rounds=1", f"--out={out}"]
    assert loader.main(flags) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + 2 * len(loader.WAYS)
    assert len({line.count("|") for line in lines}) == 1
    results = json.loads(out.read_text())["results"]
    assert [result["dataset"] for result in results] == ["ade20k", "refcoco"]
    for result in results:
        assert result["ways"]["plain"]["times_plain"] == 1
        assert result["ways"]["ours"]["bytes_of_plain"] < 1
