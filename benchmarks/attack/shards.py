"""Shards that attack their readers, and data that attack who packs them: names, sizes, sums, tar files, caches."""

from __future__ import annotations

import hashlib
import io
import json
import os
import struct
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.attack.desk import Attack, Desk, check, coco, preview, train, write_image

KIND = "shards"
PLACE = Path("runs/shards")  # below runs, where the judge looks for secrets
SHARD = PLACE / "shard-00000.tar"
HUGE = 10**18


def _packed(desk: Desk, file_name: str = "b.png", *flags: str) -> int:
    """Own data of two images, packed."""
    from utils.data.tools import shard as script

    folder = desk.here / "mine"
    folder.mkdir(exist_ok=True)
    write_image(folder / "a.png")
    write_image(folder / "b.png")
    named = file_name.replace("OUTSIDE", str(desk.outside))
    (folder / "train.json").write_text(json.dumps(coco(["dog"], ["a.png", named])))
    return script.main(
        [f"--out={PLACE}", "--dataset=own_coco:./mine", "--dataset_dir=.", "--index_cache=none", *flags]
    )


def _index() -> tuple[list[Any], Any]:
    from utils.data.index.rows import RowFile, Rows
    from utils.data.shards.layout import INDEX, Head, Row

    file = RowFile(PLACE / INDEX)
    return [*Rows(file, Row)], file.head(Head)


def _write(rows: Any, head: Any) -> None:
    from utils.data.index.rows import write_rows
    from utils.data.shards.layout import INDEX

    write_rows(PLACE / INDEX, rows, head)


def _read(command: str = "check", *flags: str) -> int:
    entry = f"sharded:{PLACE}"
    return {"check": check, "preview": preview}[command](entry, *flags)


def _rows(change: Callable[[Any], Any], command: str, desk: Desk) -> int:
    """An index of other rows, with sums that fit."""
    _packed(desk)
    rows, head = _index()
    _write(
        [change(row) if row.shard >= 0 and row.name.endswith("b.png") else row for row in rows],
        head,
    )
    return _read(command)


def _head(change: Callable[[Any], Any], desk: Desk) -> int:
    """An index of another head, with sums that fit."""
    _packed(desk)
    rows, head = _index()
    _write(rows, change(head))
    return _read()


def _twice(desk: Desk) -> int:
    """Every name twice, the second time with another place."""
    _packed(desk)
    rows, head = _index()
    _write([one for row in rows for one in (row, replace(row, offset=0, size=HUGE))], head)
    return _read()


def _parts(rows: bytes, head: bytes, desk: Desk) -> int:
    """An index of these bytes, with sums that fit; a head of b"" is the sound one."""
    from utils.data.index.rows import MAGIC, SIZES, RowFile
    from utils.data.shards.layout import INDEX

    _packed(desk)
    file = RowFile(PLACE / INDEX)
    sound = file.read(file.head_at, file.head_size)
    head = head or sound
    offsets = struct.pack("<qq", 0, len(rows))
    sizes = SIZES.pack(len(rows), 1, len(head))
    digest = hashlib.sha256(rows + offsets + head + sizes).digest()
    (PLACE / INDEX).write_bytes(MAGIC + sizes + digest + rows + offsets + head)
    return _read()


def _sizes(values: tuple[int, int, int], desk: Desk) -> int:
    """An index that says these sizes of its parts."""
    from utils.data.index.rows import MAGIC, SIZES
    from utils.data.shards.layout import INDEX

    _packed(desk)
    content = (PLACE / INDEX).read_bytes()
    start = len(MAGIC)
    (PLACE / INDEX).write_bytes(content[:start] + SIZES.pack(*values) + content[start + SIZES.size :])
    return _read()


def _tar(members: Callable[[tarfile.TarFile], None], honest: bool, desk: Desk) -> int:
    """Another tar file in the place of the shard; `honest`: the index has its size and sum."""
    _packed(desk)
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
        members(archive)
    SHARD.write_bytes(file.getvalue())
    if honest:
        rows, head = _index()
        sum_of = hashlib.sha256(file.getvalue()).digest()
        _write(
            rows, replace(head, shards=(replace(head.shards[0], size=len(file.getvalue()), sha256=sum_of),))
        )
    return _read("preview")


def _member(name: str, kind: bytes, target: str = "", **headers: str) -> Callable[[tarfile.TarFile], None]:
    def add(archive: tarfile.TarFile) -> None:
        info = tarfile.TarInfo(name)
        info.type, info.linkname, info.pax_headers = kind, target, headers
        archive.addfile(info)

    return add


def _changed(desk: Desk) -> int:
    """One byte of an image in the shard."""
    _packed(desk)
    rows, _ = _index()
    row = next(row for row in rows if row.name == "b.png")
    content = bytearray(SHARD.read_bytes())
    content[row.offset + row.size // 2] ^= 1
    SHARD.write_bytes(content)
    return _read("preview")


SPECIAL: dict[str, Callable[[Path], None]] = {
    "a pipe": os.mkfifo,
    "a link to /dev/zero": lambda path: path.symlink_to("/dev/zero"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a folder": lambda path: path.mkdir(),
}


def _special(make: Callable[[Path], None], name: str, flags: tuple[str, ...], desk: Desk) -> int:
    """A pipe, a device or a folder in the place of a shard or of the index."""
    _packed(desk)
    (PLACE / name).unlink()
    make(PLACE / name)
    return _read("check", *flags)


def _cache(make: Callable[[Path, Desk], None], desk: Desk) -> int:
    """A cache on a local disk whose files somebody else has put there, as links to a file outside, or as pipes."""
    from utils.data.index.rows import DIGEST_SIZE, RowFile
    from utils.data.shards.layout import INDEX

    _packed(desk)
    _, head = _index()
    digest = RowFile(PLACE / INDEX).prefix[-DIGEST_SIZE:].hex()
    cache = desk.here / "cache"
    cache.mkdir()
    own = (f"{head.shards[0].sha256.hex()}.tar", f"{digest}.index")
    for name in own:
        for suffix in ("", ".partial", ".lock"):
            make(cache / f"{name}{suffix}", desk)
    before = {path: path.read_bytes() for path in desk.outside.iterdir()}
    code = _read("check", f"--shard_cache={cache}")
    if before != {path: path.read_bytes() for path in desk.outside.iterdir()}:
        (desk.outside / "a file outside was written").touch()
    return code


def _in_training(desk: Desk) -> int:
    """A shard that was changed, in training."""
    _packed(desk)
    content = bytearray(SHARD.read_bytes())
    for place in range(600, len(content) - 1024, 97):
        content[place] ^= 1
    SHARD.write_bytes(content)
    return train(f"--dataset=sharded:{PLACE}", "--exp_name=x")


def _nested(depth: int) -> bytes:
    return b"\x91" * depth + b"\xc0"  # lists of one list of one list ...


def attacks() -> Iterator[Attack]:
    rows: dict[str, Callable[[Any], Any]] = {
        "an absolute name": lambda row: replace(row, name="/etc/passwd"),
        "a name by ..": lambda row: replace(row, name="../../outside/secret.png"),
        "a folder by ..": lambda row: replace(row, folder="../../outside"),
        "an absolute folder": lambda row: replace(row, folder="/etc"),
        "a name with a zero": lambda row: replace(row, name="a\0b"),
        "a name for a terminal": lambda row: replace(row, name="\x1b[31mb.png"),
        "a size of 10^18": lambda row: replace(row, size=HUGE),
        "an offset of 10^18": lambda row: replace(row, offset=HUGE),
        "an offset below zero": lambda row: replace(row, offset=-HUGE),
        "a size below zero": lambda row: replace(row, size=-1),
        "a shard of number 10^9": lambda row: replace(row, shard=10**9),
        "a shard of number -3": lambda row: replace(row, shard=-3),
    }
    for name, change in rows.items():
        for command in ("check", "preview"):
            quick = (name, command) == ("a name by ..", "preview")
            yield Attack(KIND, f"{name}, {command}", partial(_rows, change, command), quick)
    yield Attack(KIND, "names twice", _twice)
    heads: dict[str, Callable[[Any], Any]] = {
        "a shard by ..": lambda head: replace(head, shards=(replace(head.shards[0], name="../../x.tar"),)),
        "an absolute shard": lambda head: replace(head, shards=(replace(head.shards[0], name="/etc/passwd"),)),
        "a shard of 10^18 bytes": lambda head: replace(head, shards=(replace(head.shards[0], size=HUGE),)),
        "a shard of -1 bytes": lambda head: replace(head, shards=(replace(head.shards[0], size=-1),)),
        "100,000 shards": lambda head: replace(head, shards=head.shards * 100_000),
        "a rate of infinity": lambda head: replace(head, rate=float("inf")),
        "a root by ..": lambda head: replace(head, parts=(replace(head.parts[0], root="../.."),)),
        "an absolute root": lambda head: replace(head, parts=(replace(head.parts[0], root="/etc"),)),
        "an entry by ..": lambda head: replace(head, parts=(replace(head.parts[0], fields=("../../x.json",)),)),
        "an entry anywhere": lambda head: replace(
            head, parts=(replace(head.parts[0], fields=("train.json", "anywhere=true")),)
        ),
        "an entry in shards": lambda head: replace(
            head, parts=(replace(head.parts[0], name="sharded", fields=(str(PLACE),)),)
        ),
        "an entry for a terminal": lambda head: replace(head, parts=(replace(head.parts[0], name="\x1b[31m"),)),
    }  # fmt: skip
    for name, change in heads.items():
        yield Attack(KIND, name, partial(_head, change))
    large = {"of 2^32 items": b"\xdd\xff\xff\xff\xff", "of 2^32 keys": b"\xdf\xff\xff\xff\xff",
             "of a text of 4 GB": b"\xdb\xff\xff\xff\xff", "nested a million times": _nested(1_000_000)}  # fmt: skip
    names = (b"version", b"shards", b"parts", b"rate")
    for what, value in large.items():
        yield Attack(KIND, f"a head {what}", partial(_parts, b"\xc0", value))
        yield Attack(KIND, f"a row {what}", partial(_parts, value, b""))
        for name in names:
            inside = b"\x81" + bytes((0xA0 + len(name),)) + name + value
            yield Attack(KIND, f"{name.decode()} {what} in a head", partial(_parts, b"\xc0", inside))
    for sizes in ((HUGE, 1, 1), (2**63, 2**63, 2**63), (0, 2**61, 0), (0, HUGE, 10), (2**64 - 1, 0, 0)):
        yield Attack(KIND, f"an index of sizes {sizes}", partial(_sizes, sizes))
    members = {
        "a link by ..": _member("own/b.png", tarfile.SYMTYPE, "../../outside/secret.png"),
        "a hard link": _member("own/b.png", tarfile.LNKTYPE, "/etc/passwd"),
        "a device": _member("own/b.png", tarfile.CHRTYPE),
        "a pipe in it": _member("own/b.png", tarfile.FIFOTYPE),
        "an absolute member": _member("/etc/x", tarfile.REGTYPE),
        "a pax header of 64 MB": _member("own/b.png", tarfile.REGTYPE, comment="x" * 2**26),
        "a pax header that says 10^18 bytes": _member("own/b.png", tarfile.REGTYPE, size=str(HUGE)),
    }
    for name, add in members.items():
        for honest in (False, True):
            told = "whose sum the index has" if honest else "of another sum"
            yield Attack(KIND, f"a tar with {name}, {told}", partial(_tar, add, honest))
    yield Attack(KIND, "a byte of a shard", _changed)
    yield Attack(KIND, "bytes of a shard, in training", _in_training)
    for what, make in SPECIAL.items():
        for name in (SHARD.name, "index.rows"):
            for flags in ((), ("--shard_cache=cache",)):
                where = ", with a cache" if flags else ""
                yield Attack(KIND, f"{what} as {name}{where}", partial(_special, make, name, flags))
    caches: dict[str, Callable[[Path, Desk], None]] = {
        "links to a file outside": lambda path, desk: path.symlink_to(desk.outside / "secret.txt"),
        "pipes": lambda path, desk: os.mkfifo(path),
        "links to /dev/zero": lambda path, desk: path.symlink_to("/dev/zero"),
        "links to themselves": lambda path, desk: path.symlink_to(path.name),
        "folders": lambda path, desk: path.mkdir(),
        "other files": lambda path, desk: path.write_text("another one"),
    }  # fmt: skip
    for what, put in caches.items():
        yield Attack(KIND, f"a cache of {what}", partial(_cache, put), what.startswith("links to a file"))
    for name in ("../../outside/secret.txt", "OUTSIDE/secret.txt", "..\\..\\outside\\secret.txt"):
        yield Attack(KIND, f"packing {name}", partial(_packed, file_name=name))
