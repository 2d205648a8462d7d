"""The benchmark of indexes: its files are what the data sets read, and its table has every number."""

import json

from benchmarks import index
from utils.data.index import cache


def test_every_data_set_is_opened_with_and_without_a_cache(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cache, "MIN_BYTES", 0)
    monkeypatch.setattr(cache, "_place", "")
    monkeypatch.setattr(index, "QUICK", 3000)
    monkeypatch.setattr(index, "NUM_DRAWS", 10)
    monkeypatch.setattr(index, "in_fresh_process", lambda work, *arguments: work(*arguments))
    index.main(["--quick", f"--out={tmp_path / 'index.json'}"])
    rows = json.loads((tmp_path / "index.json").read_text())
    assert [row["name"] for row in rows] == list(index.SIZES)
    assert all(row[way]["draws"] > 0 for row in rows for way in ("first", "later", "memory"))
    assert "nan" not in capsys.readouterr().out
