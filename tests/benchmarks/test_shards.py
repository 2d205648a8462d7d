"""The benchmark of shards reads the same samples in every way, and counts what is opened."""

import json

from benchmarks import shards


def test_shards_are_opened_once_and_files_for_every_sample(tmp_path, capsys):
    out = tmp_path / "results" / "shards.json"
    flags = [
        "--size=64x48",
        "--num_images=6",
        "--num_samples=12",
        "--rounds=1",
        "--open_ms=1",
        f"--out={out}",
    ]
    assert shards.main(flags) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(shards.WAYS)
    opened = {row["way"]: row["opened_per_sample"] for row in json.loads(out.read_text())["results"]}
    files, folder, copied, in_parts = (opened[way.name] for way in shards.WAYS)
    assert files >= 2
    assert folder == 3 / 12, "one shard, its index, and the beginning of that"
    assert copied == 3 / 12
    assert in_parts >= 2
