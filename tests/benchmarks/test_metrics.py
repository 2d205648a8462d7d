"""The metrics benchmark compares two ways to the same counts."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks import metrics


@pytest.mark.parametrize("num_masks", [3, 12])
def test_ours_is_the_dense_way_to_the_last_pixel_but_for_what_no_mask_claims(num_masks):
    scene = metrics.make_scene(48, 64, 20, num_masks)
    dense, ours = metrics.dense(scene), metrics.ours(scene)
    assert not ours[-1].any()
    unclaimed = ours[:-1, -1]
    assert unclaimed.any() == (num_masks == 3)
    merged = ours[:-1, :-1].copy()
    merged[:, 0] += unclaimed  # there, such a pixel is the first class's
    np.testing.assert_array_equal(merged, dense)


def test_the_command_prints_a_table_and_writes_a_file(tmp_path, capsys):
    out = tmp_path / "results" / "metrics.json"
    flags = ["--cases=640x480x60", "--num_masks=5", "--rounds=2", f"--out={out}"]
    assert metrics.main(flags) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + len(metrics.WAYS)
    assert len({line.count("|") for line in lines}) == 1
    [result] = json.loads(out.read_text())["results"]
    assert result["ways"]["dense"]["times_faster"] == 1
    # The planes alone; ours has no array of them.
    assert result["ways"]["dense"]["megabytes"] > 640 * 480 * 60 * 4 / 1e6
    assert result["ways"]["ours"]["share_of_memory"] < 0.2
    assert result["ways"]["ours"]["times_faster"] > 2
