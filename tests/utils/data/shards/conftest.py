import logging
from pathlib import Path

import pytest

from utils.data import storage
from utils.data.shards import cache
from utils.data.tools import shard
from utils.toy.world import WorldConfig, make_world


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """Every published layout, and own data of the three kinds."""
    root = tmp_path_factory.mktemp("world")
    make_world(WorldConfig(out=str(root), num_images=2, num_val=1))
    return root


@pytest.fixture(autouse=True)
def _as_a_new_process(monkeypatch, tmp_path):
    """Nothing is mounted or told yet, and the user's cache is empty."""
    monkeypatch.setattr(storage, "_mounted", {})
    monkeypatch.setattr(cache, "_told", set())
    monkeypatch.setattr(cache, "_folder", "")
    monkeypatch.setattr(cache, "_max_gb", None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    yield
    for handler in logging.getLogger().handlers[:]:
        if type(handler) is logging.StreamHandler:
            logging.getLogger().removeHandler(handler)


@pytest.fixture
def write(capsys):
    """The command: writes shards and returns what it prints."""

    def write(out: str | Path, *flags: str) -> str:
        code = shard.main([f"--out={out}", *flags])
        printed = capsys.readouterr()
        assert code == 0, printed.err
        return printed.out

    return write


@pytest.fixture
def refused(capsys):
    """What a command says in its one line, with exit code 2."""

    def refused(main, *flags: str) -> str:
        assert main(list(flags)) == 2
        printed = capsys.readouterr().err
        lines = [line for line in printed.splitlines() if "WARNING" not in line and "INFO" not in line]
        assert len(lines) == 1, printed
        return lines[0]

    return refused
