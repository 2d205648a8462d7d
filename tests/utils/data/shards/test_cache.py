"""Shards behind a URL: copied once per machine, within a limit, whoever comes first."""

from __future__ import annotations

import logging
import multiprocessing
import os
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest

from tests.utils.data.index.test_same_samples import alike
from tests.utils.data.layouts import blocks, write_ade20k
from utils.config.data import DataConfig
from utils.data import storage
from utils.data.mixture import build_train_mixture
from utils.data.shards import cache, place
from utils.data.shards.cache import use_shard_cache
from utils.data.shards.place import Folder, RemotePlace
from utils.data.storage import ShardError
from utils.data.tools import check, shard

NUM_SHARDS = 4


@pytest.fixture
def plain(tmp_path):
    write_ade20k(tmp_path / "plain", [blocks([k, k + 1]) for k in range(1, 9)])
    return tmp_path / "plain"


@pytest.fixture
def remote(tmp_path, plain, write, monkeypatch):
    """The same data in four shards behind a URL. (`local://` is fsspec's driver for files, a URL to us.)"""
    monkeypatch.setattr(shard, "MEGABYTE", 6000)
    write(f"local://{tmp_path}/bucket/ade", f"--dataset_dir={plain}", "--sem_seg_data=ade20k", "--shard_mb=1")
    assert len([*(tmp_path / "bucket/ade").glob("*.tar")]) == NUM_SHARDS
    return f"local://{tmp_path}/bucket/ade"


@pytest.fixture
def copied(monkeypatch, tmp_path):
    """A line for each file that was copied whole, by any process, and for each part that was read."""
    log = tmp_path / "copied.txt"
    log.write_text("")

    def tell(line):
        with log.open("a") as file:
            file.write(f"{line}\n")

    for kind in (RemotePlace, Folder):
        chunks, read = kind.chunks, kind.read

        def all_chunks(self, name, chunks=chunks):
            tell(f"whole {name}")
            yield from chunks(self, name)

        def one_part(self, name, start, size, read=read):
            tell(f"part {name}")
            return read(self, name, start, size)

        monkeypatch.setattr(kind, "chunks", all_chunks)
        monkeypatch.setattr(kind, "read", one_part)
    return lambda: log.read_text().splitlines()


def drawn(where, num=16):
    config = replace(DataConfig(), dataset=where, sem_seg_data="ade20k")
    mixture = build_train_mixture(config, config.sequence_format)
    return [replace(mixture[index], source="", dataset="") for index in range(num)]


def from_files(plain, num=16):
    config = replace(DataConfig(), dataset="sem_seg", sem_seg_data="ade20k", dataset_dir=str(plain))
    mixture = build_train_mixture(config, config.sequence_format)
    return [replace(mixture[index], source="", dataset="") for index in range(num)]


def in_cache(folder, suffix=".tar"):
    return sorted(path for path in Path(folder).iterdir() if path.name.endswith(suffix))


def test_a_url_is_copied_into_the_users_cache_and_gives_the_samples_of_the_files(
    remote, plain, copied, tmp_path
):
    assert alike(drawn(f"sharded:{remote}"), from_files(plain))
    assert sorted(copied()) == [
        *["part index.rows"],
        *["whole index.rows"],
        *(f"whole shard-{number:05d}.tar" for number in range(NUM_SHARDS)),
    ]
    assert len(in_cache(tmp_path / "home/lasagna/shards")) == NUM_SHARDS
    storage._mounted.clear()
    (tmp_path / "bucket/ade/shard-00001.tar").unlink()
    assert alike(drawn(f"sharded:{remote}"), from_files(plain)), "what was copied is not read again"


def test_a_url_in_memory_serves_as_well(plain, write):
    write("memory://bucket/ade", f"--dataset_dir={plain}", "--sem_seg_data=ade20k")
    assert alike(drawn("sharded:memory://bucket/ade"), from_files(plain))
    fsspec.filesystem("memory").rm("/bucket", recursive=True)


def draw_in_a_process(where, folder, max_gb, ready):
    storage._mounted.clear()
    use_shard_cache(folder, max_gb)
    ready.wait()
    drawn(where, num=24)


def in_processes(number, where, folder, max_gb=None):
    context = multiprocessing.get_context("fork")
    ready = context.Barrier(number)
    processes = [
        context.Process(target=draw_in_a_process, args=(where, str(folder), max_gb, ready))
        for _ in range(number)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * number


@pytest.mark.parametrize("is_url", [True, False])
def test_a_shard_is_copied_once_and_not_by_every_process(is_url, remote, copied, tmp_path):
    where = f"sharded:{remote if is_url else remote.removeprefix('local://')}"
    in_processes(4, where, tmp_path / "cache")
    whole = [line for line in copied() if line.startswith("whole")]
    assert sorted(whole) == [
        "whole index.rows",
        *(f"whole shard-{number:05d}.tar" for number in range(NUM_SHARDS)),
    ]
    assert not in_cache(tmp_path / "cache", ".partial")


def test_the_cache_keeps_its_limit_whoever_writes_and_the_rest_is_read_part_by_part(
    remote, plain, copied, tmp_path, caplog
):
    sizes = sorted(path.stat().st_size for path in (tmp_path / "bucket/ade").glob("*.tar"))
    limit = sizes[-1] + sizes[-2] + 100
    in_processes(4, f"sharded:{remote}", tmp_path / "cache", limit / 1e9)
    kept = in_cache(tmp_path / "cache")
    assert 1 <= len(kept) <= 2
    assert sum(path.stat().st_size for path in kept) <= limit
    use_shard_cache(str(tmp_path / "cache"), limit / 1e9)
    assert alike(drawn(f"sharded:{remote}"), from_files(plain))
    assert caplog.text.count("is full (--shard_cache_gb") == 1
    assert any(line.startswith("part shard-") for line in copied())
    use_shard_cache(str(tmp_path / "none"), 0)
    storage._mounted.clear()
    assert alike(drawn(f"sharded:{remote}"), from_files(plain))
    assert not in_cache(tmp_path / "none")


def test_what_a_killed_process_left_takes_no_room(remote, plain, tmp_path):
    folder = tmp_path / "cache"
    folder.mkdir()
    (folder / f"{'0' * 64}.tar.partial").write_bytes(bytes(100_000))
    use_shard_cache(str(folder), 0.0001)
    drawn(f"sharded:{remote}")
    assert len(in_cache(folder)) == NUM_SHARDS
    assert not in_cache(folder, ".partial")


def test_a_copy_that_arrives_damaged_is_fetched_again_and_never_kept(remote, plain, tmp_path, monkeypatch):
    chunks, trials = RemotePlace.chunks, []

    def damaged_once(self, name):
        trials.append(name)
        spoil = name.endswith(".tar") and trials.count(name) == 1
        for chunk in chunks(self, name):
            yield chunk[:-1] + b"x" if spoil else chunk

    monkeypatch.setattr(RemotePlace, "chunks", damaged_once)
    assert alike(drawn(f"sharded:{remote}"), from_files(plain))
    assert trials.count("shard-00000.tar") == 2
    storage._mounted.clear()
    monkeypatch.setattr(
        RemotePlace, "chunks", lambda self, name: (chunk[:-9] for chunk in chunks(self, name))
    )
    use_shard_cache(str(tmp_path / "other"), None)
    with pytest.raises(storage.ShardError, match=r"index.rows is damaged: its parts do not add up"):
        drawn(f"sharded:{remote}")
    assert not in_cache(tmp_path / "other", ".index")


def test_damage_at_the_source_is_told_with_its_url(remote, tmp_path):
    path = tmp_path / "bucket/ade/shard-00002.tar"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(
        storage.ShardError, match=r"local://.*/shard-00002.tar was cut off: \d+ bytes, of \d+"
    ):
        drawn(f"sharded:{remote}")
    path.unlink()
    with pytest.raises(storage.ShardError, match=r"local://.*/shard-00002.tar is missing"):
        drawn(f"sharded:{remote}")


def test_a_connection_that_fails_is_tried_again_then_told(remote, plain, monkeypatch):
    monkeypatch.setattr(place, "WAITS", (0.0, 0.0))
    use_shard_cache("", 0)
    failures = []

    def cat_file(self, path, start=None, end=None, original=fsspec.AbstractFileSystem.cat_file):
        if len(failures) % 3 < 2:
            failures.append(path)
            raise TimeoutError("the server\ndoes not answer")
        failures.append("")
        return original(self, path, start=start, end=end)

    monkeypatch.setattr(fsspec.AbstractFileSystem, "cat_file", cat_file)
    assert alike(drawn(f"sharded:{remote}", num=2), from_files(plain, num=2))
    storage._mounted.clear()
    monkeypatch.setattr(fsspec.AbstractFileSystem, "cat_file", lambda *given, **named: 1 / 0)
    with pytest.raises(storage.ShardError, match=r"local://.*index.rows cannot be read \(division by zero\)"):
        drawn(f"sharded:{remote}")


def test_a_cache_that_cannot_be_written_is_told(remote, tmp_path, refused):
    (tmp_path / "file").write_text("")
    said = refused(check.main, f"--dataset=sharded:{remote}", f"--shard_cache={tmp_path / 'file'}")
    assert f"--shard_cache {tmp_path / 'file'} cannot be written to" in said


def test_a_full_disk_leaves_the_rest_where_it_lies(remote, plain, tmp_path, monkeypatch, caplog):
    def replace_but_on_a_full_disk(source, target, replace=os.replace):
        if str(target).endswith(".tar"):
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(cache.os, "replace", replace_but_on_a_full_disk)
    assert alike(drawn(f"sharded:{remote}"), from_files(plain))
    assert caplog.text.count("the disk is full; what is not in it is read from where it lies") == 1
    assert caplog.records[-1].levelno == logging.WARNING
    assert not in_cache(tmp_path / "home/lasagna/shards", ".partial")


def test_shards_at_a_url_are_not_written_over(remote, plain, refused):
    said = refused(shard.main, f"--out={remote}", f"--dataset_dir={plain}", "--sem_seg_data=ade20k")
    assert "holds shards already; name another folder, or remove it first" in said


@pytest.mark.parametrize("suffix", ["", ".partial", ".lock"])
def test_links_in_a_cache_are_not_written_through(suffix, plain, remote, tmp_path):
    expected = from_files(plain)
    folder, outside = tmp_path / "cache", tmp_path / "outside.txt"
    use_shard_cache(str(folder), None)
    drawn(f"sharded:{remote}")
    names = [path.name for path in folder.iterdir() if path.suffix in (".tar", ".index")]
    assert len(names) == NUM_SHARDS + 1
    outside.write_text("secret")
    for name in names:
        for path in (folder / name, folder / f"{name}.lock"):
            path.unlink()
        (folder / f"{name}{suffix}").symlink_to(outside)
    storage._mounted.clear()
    if suffix == ".lock":
        with pytest.raises(ShardError, match=r"--shard_cache .* cannot be written to .*symbolic links"):
            drawn(f"sharded:{remote}")
    else:
        assert alike(drawn(f"sharded:{remote}"), expected)
    assert outside.read_text() == "secret"
