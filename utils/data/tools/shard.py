"""Pack data sets into shards: tar files that are read by position.

    python -m utils.data.tools.shard --dataset_dir ./dataset \\
      --dataset "sem_seg||refer_seg" --sem_seg_data ade20k --out ./shards
    python -m utils.data.tools.shard --dataset own_coco:./boats \\
      --val_dataset_list "own_coco:./boats|val" --out s3://bucket/boats

The data flags are those of training; rates are stored, too. Training and
evaluation then read them as any data set: --dataset sharded:./shards and
--val_dataset_list "sharded:s3://bucket/boats|own_coco". Every sample is the
one that the files give. --out is a folder or a URL of fsspec.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from utils.common.command_line import answer_at_once, parse_config
from utils.config.tools import ShardConfig
from utils.config.training import TrainConfig

if __name__ == "__main__":
    # Slow imports follow.
    answer_at_once("utils.data.tools.shard", ShardConfig, __doc__, passed_over=TrainConfig)

from tqdm import tqdm

from model.errors import UserError
from utils.common.commands import command
from utils.common.logs import start_logging
from utils.common.terminal import printable
from utils.data import storage
from utils.data.base import Dataset
from utils.data.dataset_flags import source_rates
from utils.data.datasets.own import find_path
from utils.data.index.cache import OFF, use_index_cache
from utils.data.registry import SHARDED, Entry, entry_text, with_paths
from utils.data.shards.layout import Part
from utils.data.shards.place import place_of
from utils.data.shards.write import ShardWriter
from utils.data.storage import Asked
from utils.data.tools.selection import entries_asked, entries_to_evaluate, flags_asked

PUBLIC = "data"  # the folder in the shards that stands for --dataset_dir
OWN = "own"  # those that stand for folders of own data elsewhere: own, own_2, ...
MEGABYTE = 10**6


@dataclass
class Packed:
    """What goes into the shards, besides their files: see `ShardWriter.finish`."""

    parts: list[Part] = field(default_factory=list)
    folders: dict[str, None] = field(default_factory=dict)
    listed: dict[str, Sequence[tuple[str, bool]]] = field(default_factory=dict)
    own_roots: dict[str, str] = field(default_factory=dict)  # folder of own data -> the one in the shards

    def name_of(self, root: str) -> str:
        """The folder in the shards that stands for one of own data."""
        number = len(self.own_roots) + 1
        return self.own_roots.setdefault(root, OWN if number == 1 else f"{OWN}_{number}")


@command("utils.data.tools.shard")
def main(argv: Sequence[str] | None = None) -> int:
    config = parse_config(ShardConfig, argv, about=__doc__, passed_over=TrainConfig)
    if not config.out:
        raise UserError("--out is missing: the folder or URL to write the shards to")
    start_logging()
    use_index_cache(OFF)  # what reads an index does not read the annotations, which are to be packed
    entries = [(entry, True) for entry in entries_asked(config)]
    if config.val_dataset_list:
        found = entries_to_evaluate(config.val_dataset_list, config.dataset_dir)
        entries += [(entry, False) for entry in found]
    if not entries:
        raise UserError("nothing to pack: name data sets with --dataset or --val_dataset_list")
    place = place_of(config.out, "--out")
    asked = flags_asked(config)
    packed = Packed()
    with place.held(), ShardWriter(place, config.shard_mb * MEGABYTE) as writer:
        for entry, training in entries:
            pack(entry, training, config, writer, packed)
        rate = sum(source_rates(asked).values()) if asked else 1.0
        writer.finish(packed.parts, rate, packed.folders, packed.listed)
    report(config, writer, packed)
    return 0


def pack(entry: Entry, training: bool, config: ShardConfig, writer: ShardWriter, packed: Packed) -> None:
    """Add the files of an entry: those that opening it reads, and those of its items, in their order."""
    if entry.shards:
        raise UserError(f"{entry} is in shards already; copy these")
    if any(text.startswith("anywhere") for text in entry.fields):
        raise UserError(
            f"{entry}: anywhere=true lets names lead out of its folder, where shards hold nothing; copy the images "
            "into the folder"
        )
    with storage.recording() as asked:
        dataset = entry.open(config.dataset_dir, training=training)
        files = dict.fromkeys(os.path.abspath(path) for path in files_of(dataset))
    read = [path for path in asked.read if storage.is_file(path)]
    root, name, fields = root_of(entry, [*read, *files], config.dataset_dir, packed)
    progress = tqdm(
        list(dict.fromkeys([*read, *files])), desc=entry.name, unit="file", leave=False, disable=None
    )
    for path in progress:
        with storage.open_file(path) as file:
            writer.add(path_in_shards(path, root, name), file.read())
    note_listings(asked, root, name, writer, packed)
    packed.parts.append(
        Part(
            name=entry.name,
            fields=fields,
            root=name,
            training=training,
            fraction=entry.rate if training else 0.0,
        )
    )


def files_of(dataset: Dataset) -> list[Path]:
    """The files of the items; what is not there is left out, as reading it tells so with and without shards."""
    return [path for path in dict.fromkeys(dataset.files()) if storage.is_file(path)]


def root_of(
    entry: Entry, files: Sequence[str], dataset_dir: str, packed: Packed
) -> tuple[str, str, tuple[str, ...]]:
    """The folder that an entry's files are below, the folder in the shards that stands for it, the entry's fields.

    Names in the shards tell nothing of what is above that folder: it is --dataset_dir, or for own data elsewhere the
    folder that holds all of its files.
    """
    public = os.path.abspath(dataset_dir)
    if not entry.is_own:
        return public, PUBLIC, entry.fields
    places: list[str] = []

    def place(path: str) -> str:
        places.append(os.path.abspath(find_path(path, dataset_dir, str(entry))))
        return places[-1]

    named = with_paths(entry.name, entry.fields, place)
    root = os.path.commonpath([*map(os.path.dirname, places), *map(os.path.dirname, files)])
    root, name = (public, PUBLIC) if is_below(root, public) else (root, packed.name_of(root))
    return root, name, with_paths(entry.name, named, lambda path: os.path.relpath(path, root))


def is_below(path: str, folder: str) -> bool:
    return os.path.commonpath([path, folder]) == folder


def path_in_shards(path: str, root: str, name: str) -> str:
    """Where a file goes; UserError if it is not below the root."""
    if not is_below(path, root):
        raise UserError(f"{path} is not in {root}, and shards hold what is in it alone; move it there")
    return f"{name}/{os.path.relpath(path, root)}"


def note_listings(asked: Asked, root: str, name: str, writer: ShardWriter, packed: Packed) -> None:
    """Keep what the data set was told about folders, so that it is told the same of the shards.

    The names of files that are not packed count, too: which file a name in an annotation means depends on what else
    is there. They are kept only for folders with packed files: what else is in a home folder concerns nobody.
    """
    used = {row.folder for row in writer.rows.values()}
    for folder, names in asked.listed.items():
        if is_below(folder, root) and (place := path_in_shards(folder, root, name)) in used:
            packed.listed[place] = names
    for folder in asked.folders:
        if is_below(folder, root) and folder != root:
            packed.folders[path_in_shards(folder, root, name)] = None


def report(config: ShardConfig, writer: ShardWriter, packed: Packed) -> None:
    """Print what was written, and the flags that read it."""
    num_files = sum(row.shard >= 0 for row in writer.rows.values())
    size = writer.num_bytes / MEGABYTE
    print(printable(f"{config.out}: {num_files:,} files, {size:,.1f} MB, in {len(writer.shards)} shards"))
    for part in packed.parts:
        text = f"{SHARDED}:{config.out}|{entry_text(part.name, part.fields)}"
        print(printable(f'  {"--dataset" if part.training else "--val_dataset_list"} "{text}"'))


if __name__ == "__main__":
    sys.exit(main())
