"""What a folder of shards holds, and how it is written down.

    shard-00000.tar     files, in plain tar: any tar reader unpacks them
    index.rows          which file is where, see utils/data/index/rows.py for the format

The index has a row for each name, sorted by folder and name, so that a path is found by bisection, in the pages of
the file. Its head names the shards, with sizes and sums, and the data set entries that can be opened.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import PurePosixPath

from utils.data.storage import ShardError

VERSION = 1
INDEX = "index.rows"
SHARD_NAME = re.compile(r"shard-\d{5,}\.tar")
LISTED, FOLDER = -1, -2  # in place of a shard's number: a file that is only named, a folder


@dataclass(frozen=True)
class Row:
    """One name in a folder."""

    folder: str  # "" for the top
    name: str
    shard: int  # its number, LISTED or FOLDER
    offset: int = 0  # of the content in the shard, bytes
    size: int = 0  # bytes
    crc: int = 0  # CRC-32 of the content


@dataclass(frozen=True)
class ShardFile:
    """One tar file."""

    name: str
    size: int  # bytes
    sha256: bytes


@dataclass(frozen=True)
class Part:
    """A data set entry that the shards hold."""

    name: str  # as in flags: refcoco, own_coco
    fields: tuple[str, ...]  # those of the entry; paths of own data relative to `root`
    root: str  # the folder in the shards that stands for --dataset_dir
    training: bool  # for training, or for evaluation
    fraction: float = 0.0  # of the draws among the training entries


@dataclass(frozen=True)
class Head:
    """What the index holds besides its rows."""

    version: int
    shards: tuple[ShardFile, ...]
    parts: tuple[Part, ...]
    rate: float  # default sampling rate of all training entries together, beside other sources


def shard_name(number: int) -> str:
    return f"shard-{number:05d}.tar"


def is_plain(name: str) -> bool:
    """Whether a name is one part of a path, and leads nowhere else."""
    return bool(name) and name not in (".", "..") and "/" not in name and "\0" not in name


def is_plain_path(path: str) -> bool:
    """Whether a relative path leads to something below; "" is what it is relative to."""
    return not path or (all(map(is_plain, path.split("/"))) and not PurePosixPath(path).is_absolute())


def check_head(head: Head, where: str) -> None:
    """ShardError for a head that this program does not read, or that leads outside of the shards."""
    if head.version != VERSION:
        raise ShardError(
            f"{where} is of version {head.version}, and this program reads {VERSION}; shard the data again"
        )
    if any(not SHARD_NAME.fullmatch(shard.name) or shard.size < 0 for shard in head.shards):
        raise ShardError(f"{where} names shards that are none; shard the data again")
    rates = [head.rate, *(part.fraction for part in head.parts if part.training)]
    if not all(0 < rate < math.inf for rate in rates):
        raise ShardError(f"{where}: rates are numbers above 0, and it holds {rates}; shard the data again")
    for part in head.parts:
        # The first field of own data is a path, and that of images=; others hold no slash, or are refused as well.
        paths = [part.root, *(field.removeprefix("images=") for field in part.fields)]
        if not all(map(is_plain_path, paths)) or any("anywhere" in field for field in part.fields[1:]):
            entry = "|".join((part.name, *part.fields))
            raise ShardError(f"{where}: its entry {entry!r} leads outside of the shards, and is refused")
