"""Shards that are damaged, cut off, made to deceive, or named wrongly: one line says so, and nothing is executed."""

from __future__ import annotations

import json
import os
import pickle
import resource
import socket
from dataclasses import replace

import msgspec
import numpy as np
import pytest

from tests.utils.data.layouts import blocks, save, write_ade20k
from utils.common.processes import start_of
from utils.config.data import DataConfig
from utils.data import storage
from utils.data.dataset_flags import parse_dataset_flags
from utils.data.index.rows import RowFile, Rows, write_rows
from utils.data.mixture import build_train_mixture
from utils.data.shards.cache import use_shard_cache
from utils.data.shards.layout import INDEX, Head, Part, Row
from utils.data.shards.tree import open_shards
from utils.data.storage import ShardError
from utils.data.tools import check, preview, shard


@pytest.fixture
def shards(tmp_path, write):
    """Two images of ADE20K and their labels, in one shard."""
    write_ade20k(tmp_path / "plain", [blocks([1, 2]), blocks([3, 4])])
    write(tmp_path / "shards", f"--dataset_dir={tmp_path / 'plain'}", "--sem_seg_data=ade20k")
    storage._mounted.clear()
    return tmp_path / "shards"


def draw(shards, *indices):
    config = replace(DataConfig(), dataset=f"sharded:{shards}")
    mixture = build_train_mixture(config, config.sequence_format)
    return [mixture[index] for index in indices or (0,)]


def rewritten(shards, change_row=lambda row: row, change_head=lambda head: head):
    """The index, with other rows or another head, and sums that fit."""
    file = RowFile(shards / INDEX)
    rows, head = [*Rows(file, Row)], file.head(Head)
    write_rows(
        shards / INDEX,
        sorted(map(change_row, rows), key=lambda row: (row.folder, row.name)),
        change_head(head),
    )


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def flip_an_image(shards):
    (row,) = (row for row in Rows(RowFile(shards / INDEX), Row) if row.name.endswith("0.jpg"))
    flip(shards / "shard-00000.tar", row.offset + row.size // 2)


def cut(path, by):
    path.write_bytes(path.read_bytes()[:-by])


DAMAGE = {
    "a byte of an image": (
        flip_an_image,
        r"shard-00000.tar is damaged, at 'data/ade20k/.*0.jpg': its content",
    ),
    "a shard that was cut off": (
        lambda shards: cut(shards / "shard-00000.tar", 600),
        r"shard-00000.tar was cut off: \d+ bytes, of \d+; copy it again",
    ),
    "an empty shard": (lambda shards: (shards / "shard-00000.tar").write_bytes(b""), "cut off: 0 bytes"),
    "a longer shard": (
        lambda shards: (shards / "shard-00000.tar").open("ab").write(b"x"),
        r"shard-00000.tar is another file: more than \d+ bytes",
    ),
    "no shard": (lambda shards: (shards / "shard-00000.tar").unlink(), "shard-00000.tar is missing"),
    "a byte of the index": (lambda shards: flip(shards / INDEX, 100), r"index.rows is damaged: .*checksum"),
    "an index that was cut off": (
        lambda shards: cut(shards / INDEX, 9),
        "index.rows is damaged: its parts do not",
    ),
    "an empty index": (
        lambda shards: (shards / INDEX).write_bytes(b""),
        "index.rows is damaged: it was cut off",
    ),
    "no index": (lambda shards: (shards / INDEX).unlink(), "holds no shards: there is no .*index.rows"),
    "a pickle": (
        lambda shards: (shards / INDEX).write_bytes(pickle.dumps(["x" * 100])),
        "index.rows is damaged: it does not begin as an index does",
    ),
    "sizes beyond any memory": (
        lambda shards: rewritten(shards, lambda row: replace(row, size=2**60) if row.shard >= 0 else row),
        "lies beyond the end of shard-00000.tar",
    ),
    "an offset below zero": (
        lambda shards: rewritten(shards, lambda row: replace(row, offset=-512) if row.shard >= 0 else row),
        "lies beyond the end of shard-00000.tar",
    ),
    "a shard that is none of them": (
        lambda shards: rewritten(shards, lambda row: replace(row, shard=7) if row.shard >= 0 else row),
        "is in no shard that it lists",
    ),
    "names that lead outside": (
        lambda shards: rewritten(
            shards, lambda row: replace(row, name="../x.jpg") if "0.jpg" in row.name else row
        ),
        r"holds '../x.jpg', which is no name of a file",
    ),
    "a shard elsewhere": (
        lambda shards: rewritten(
            shards,
            change_head=lambda head: replace(
                head, shards=tuple(replace(s, name="../../etc") for s in head.shards)
            ),
        ),
        "names shards that are none",
    ),
    "another version": (
        lambda shards: rewritten(shards, change_head=lambda head: replace(head, version=99)),
        "is of version 99, and this program reads 1",
    ),
    "rates that are none": (
        lambda shards: rewritten(shards, change_head=lambda head: replace(head, rate=float("nan"))),
        "rates are numbers above 0",
    ),
    "a data set that is none": (
        lambda shards: rewritten(
            shards, change_head=lambda head: replace(head, parts=(replace(head.parts[0], name="os.system"),))
        ),
        "holds nothing for training",
    ),
    "rows of other types": (
        lambda shards: write_rows(shards / INDEX, [["a", 1]], RowFile(shards / INDEX).head(Head)),
        "shard the data again",
    ),
    "a head of other types": (
        lambda shards: write_rows(shards / INDEX, [], ["head"]),
        "it holds something else",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_told_in_one_line_and_replaces_no_sample(damage, shards):
    spoil, told = DAMAGE[damage]
    spoil(shards)
    with pytest.raises((storage.UserError, OSError), match=told) as caught:
        draw(shards, *range(8))
    assert "\n" not in str(caught.value)
    assert "unusable items in a row" not in str(caught.value)


@pytest.mark.parametrize(
    "fields",
    [
        ("own_coco", ("/etc/passwd",)),
        ("own_coco", ("../../other/boats.json",)),
        ("own_coco", ("boats.json", "images=/etc")),
        ("own_coco", ("boats.json", "anywhere=true")),
        ("own_sem", ("a/../../b",)),
    ],
)
def test_entries_that_lead_outside_are_refused(fields, shards):
    name, rest = fields
    part = Part(name=name, fields=rest, root="own", training=True, fraction=1.0)
    rewritten(shards, change_head=lambda head: replace(head, parts=(part,)))
    with pytest.raises(ShardError, match="leads outside of the shards, and is refused"):
        parse_dataset_flags(replace(DataConfig(), dataset=f"sharded:{shards}"))


def test_names_in_shards_never_reach_the_disk(shards, tmp_path):
    save(tmp_path / "outside.png", np.zeros((4, 4), dtype=np.uint8))
    tree = open_shards(str(shards))
    assert (tree.root / "../outside.png").exists()
    for name in ("../outside.png", "data/../../outside.png", "data/ade20k/../../../outside.png"):
        path = tree.root / name
        assert not storage.is_file(path)
        assert not storage.is_named(path)
        with pytest.raises(FileNotFoundError):
            storage.open_file(path)
    with pytest.raises(storage.UserError, match="is a folder"):
        storage.open_file(tree.root / "data")
    with pytest.raises(NotADirectoryError):
        storage.scan(tree.root / "data/ade20k/images/training/ADE_training_00000000.jpg")


def test_the_commands_say_it_in_one_line(shards, refused, tmp_path):
    for main in (check.main, preview.main):
        flags = [] if main is check.main else [f"--out={tmp_path / 'page.html'}"]
        said = refused(main, f"--dataset=sharded:{tmp_path / 'none'}", *flags)
        assert "holds no shards: there is no" in said
        assert "utils.data.tools.shard" in said
    assert "sharded needs the folder or URL of the shards" in refused(check.main, "--dataset=sharded:")
    said = refused(check.main, f"--dataset=sharded:{shards}|refcoco")
    assert "holds no 'refcoco' for training; it holds ade20k" in said
    said = refused(check.main, f"--val_dataset_list=sharded:{shards}")
    assert "holds nothing for evaluation; name it when sharding" in said
    said = refused(check.main, "--sem_seg_data", f"sharded:{shards}", "--dataset=sem_seg")
    assert 'shards are a source; write --dataset "sem_seg||sharded:' in said
    assert "unknown" in refused(check.main, "--dataset=nonsense://bucket/x")
    assert "cannot be opened" in refused(check.main, "--dataset=sharded:nonsense://bucket/x")
    assert "--shard_cache_gb must be >= 0" in refused(check.main, "--shard_cache_gb=-1")


def test_check_reads_shards_as_any_data(shards, capsys):
    assert check.main([f"--dataset=sharded:{shards}", "--num_samples=3", "--all"]) == 0
    assert "ok" in capsys.readouterr().out


def test_what_cannot_be_packed_is_said(shards, refused, tmp_path):
    plain = f"--dataset_dir={tmp_path / 'plain'}"
    assert "--out is missing" in refused(shard.main, plain, "--sem_seg_data=ade20k")
    out = f"--out={tmp_path / 'new'}"
    assert "nothing to pack" in refused(shard.main, plain, out)
    assert "holds shards already" in refused(shard.main, plain, f"--out={shards}", "--sem_seg_data=ade20k")
    assert "holds other files already" in refused(
        shard.main, plain, f"--out={tmp_path / 'plain'}", "--sem_seg_data=ade20k"
    )
    assert (tmp_path / "plain/ade20k").exists()
    assert "is in shards already" in refused(shard.main, out, f"--dataset=sharded:{shards}")
    assert "anywhere=true lets names lead out" in refused(
        shard.main, out, f"--dataset=own_coco:{tmp_path}/a.json|anywhere=true"
    )
    assert "--shard_mb must be > 0" in refused(shard.main, out, plain, "--shard_mb=0")
    assert "needs" in refused(shard.main, out, plain, "--refer_seg_data=refcoco")
    file = tmp_path / "file"
    file.write_text("")
    assert "is a file; name a folder" in refused(shard.main, plain, f"--out={file}", "--sem_seg_data=ade20k")
    assert not (tmp_path / "new").exists()


def test_shards_of_a_read_only_folder_are_read_and_nothing_is_left_in_it(shards, tmp_path):
    before = sorted(path.name for path in shards.iterdir())
    for path in (*shards.iterdir(), shards):
        path.chmod(0o555 if path.is_dir() else 0o444)
    draw(shards)
    assert sorted(path.name for path in shards.iterdir()) == before
    shards.chmod(0o755)


@pytest.mark.parametrize("with_cache", [True, False])
@pytest.mark.parametrize("name", [INDEX, "shard-00000.tar"])
@pytest.mark.parametrize(
    "put", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), lambda path: path.mkdir()]
)
def test_what_is_no_file_keeps_nobody_waiting(put, name, with_cache, shards, tmp_path):
    if with_cache:
        use_shard_cache(str(tmp_path / "cache"), None)
    (shards / name).unlink()
    put(shards / name)
    with pytest.raises(ShardError, match=rf"{name}: is a .*, not a file|{name} cannot be read"):
        draw(shards)


def test_two_writers_of_one_folder_are_not_mixed(shards, refused, tmp_path):
    out = tmp_path / "new"
    out.mkdir()
    holder = {"host": socket.gethostname(), "pid": os.getppid(), "start": start_of(os.getppid())}
    (out / "writing.lock").write_text(json.dumps(holder))
    flags = (f"--dataset_dir={tmp_path / 'plain'}", "--sem_seg_data=ade20k", f"--out={out}")
    assert f"in use by process {os.getppid()}" in refused(shard.main, *flags)
    (out / "writing.lock").unlink()
    assert shard.main(list(flags)) == 0
    assert sorted(path.name for path in out.iterdir()) == [INDEX, "shard-00000.tar"]


@pytest.mark.parametrize("content", [b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\x91" * 10**6])
def test_lists_that_announce_billions_take_no_memory(content, shards):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    head = b"\x81\xa6shards" + content
    write_rows(shards / INDEX, [], msgspec.Raw(head))
    with pytest.raises(ShardError, match=r"index\.rows is damaged"):
        draw(shards)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB
