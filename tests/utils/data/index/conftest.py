import pytest

from utils.data.index import cache


@pytest.fixture
def cache_folder(tmp_path, monkeypatch):
    """An empty cache that keeps the index of every annotation file, however small."""
    folder = tmp_path / "cache"
    monkeypatch.setattr(cache, "MIN_BYTES", 0)
    monkeypatch.setattr(cache, "_place", str(folder))
    monkeypatch.setattr(cache, "_told", set())
    return folder
