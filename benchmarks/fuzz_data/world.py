"""The data that are damaged: a toy world in all layouts, and which files each data set reads."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from utils.data.base import Dataset
from utils.data.registry import DATASETS, Entry, parse_entry, training_entries
from utils.data.val_datasets import known_entries
from utils.toy.world import SECOND_CHOICE, WRITERS, WorldConfig, make_world

# Layouts that cannot lie beside the first choice, each in a root of its own, with the data set that reads it.
SECOND = {
    "ade20k:ADEChallengeData2016": "ade20k",
    "coco:stuffthingmaps": "cocostuff",
    "mapillary:v1.2": "mapillary",
    "pascal_context:tif": "pc459",
}
ALL_LAYOUTS = (*WRITERS, *SECOND_CHOICE)
OWN = {"own_sem": "labels", "own_coco": "things", "own_jsonl": "questions"}
NUM_IMAGES = 2  # of each split
OUTSIDE = "outside"  # beside the data: nothing in it belongs to them
FLAG = "--val_dataset_list"


@dataclass(frozen=True)
class Target:
    """One data set of one root, as it is trained on and evaluated."""

    name: str
    root: Path
    training: tuple[Entry, ...]
    evaluation: tuple[Entry, ...]

    def open(self) -> Iterator[tuple[Entry, bool, Dataset]]:
        """Its data sets: entry, whether for training, data set."""
        for entry in self.training:
            yield entry, True, entry.open(self.root, training=True)
        for entry in self.evaluation:
            yield entry, False, entry.open(self.root)


def make_worlds(folder: Path, layouts: Sequence[str] = ALL_LAYOUTS) -> list[Target]:
    """Write the worlds below `folder`; the targets that can be read in them."""
    assert set(SECOND) == set(SECOND_CHOICE), "a layout of the toy world is not fuzzed"
    outside = folder / OUTSIDE
    outside.mkdir(parents=True)
    Image.fromarray(np.full((64, 64, 3), 77, dtype=np.uint8)).save(outside / "secret.jpg")
    Image.fromarray(np.full((64, 64), 1, dtype=np.uint8)).save(outside / "secret.png")
    (outside / "secret.json").write_text("{}")
    root = folder / "world"
    first = [name for name in layouts if name in WRITERS]
    make_world(WorldConfig(out=str(root), num_images=NUM_IMAGES, num_val=NUM_IMAGES, layouts=",".join(first)))
    targets = [target_of(name, root) for name in DATASETS]
    if "own" in layouts:
        targets += [
            own_target(kind, place) for kind, place in OWN.items() for place in [root / "own" / place]
        ]
    for layout, name in SECOND.items():
        if layout in layouts:
            other = folder / layout.replace(":", "_")
            make_world(WorldConfig(out=str(other), num_images=NUM_IMAGES, num_val=NUM_IMAGES, layouts=layout))
            targets.append(target_of(name, other, label=layout))
    found = [target for target in targets if target.training or target.evaluation]
    assert layouts != ALL_LAYOUTS or len(found) == len(targets), "the toy world lacks a data set"
    return found


def own_target(kind: str, place: Path) -> Target:
    """Own data of one kind."""
    entry = parse_entry(f"{kind}:{place}{'|exhaustive=true' if kind == 'own_coco' else ''}", FLAG)
    return Target(kind, place.parents[1], (entry,), (entry,))


def target_of(name: str, root: Path, label: str = "") -> Target:
    """A published data set, of the splits that are there."""
    training = training_entries(name) if DATASETS[name].train_split else []
    evaluation = [entry for entry in known_entries() if entry.name == name]
    there: list[tuple[Entry, ...]] = []
    for entries, is_training in ((training, True), (evaluation, False)):
        kept = []
        for entry in entries:
            with suppress(FileNotFoundError):
                entry.open(root, training=is_training)
                kept.append(entry)
        there.append(tuple(kept))
    return Target(label or name, root, *there)


def files_of(target: Target, read: set[str]) -> list[Path]:
    """The files below its root that were opened while it was read, without duplicates."""
    root = str(target.root.resolve()) + "/"
    return [Path(name) for name in sorted(read) if name.startswith(root) and Path(name).is_file()]


class Watch:
    """What the process opens and changes, from now on: an audit hook, which cannot be taken off again."""

    CHANGES = frozenset({
        "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod",
        "os.chown", "os.utime", "shutil.rmtree", "shutil.move", "shutil.copyfile",
    })  # fmt: skip

    def __init__(self) -> None:
        self.read: set[str] = set()
        self.written: set[str] = set()
        self.is_on = False
        sys.addaudithook(self._hook)

    @contextmanager
    def on(self) -> Iterator[Watch]:
        """Watch inside the block."""
        self.is_on = True
        try:
            yield self
        finally:
            self.is_on = False

    def _hook(self, event: str, arguments: tuple[object, ...]) -> None:
        if not self.is_on:
            return
        if event == "open":
            path, mode, flags = (*arguments, None, 0)[:3]
            if isinstance(path, str | bytes) or hasattr(path, "__fspath__"):
                writes = bool(set(str(mode or "")) & set("wax+")) or (isinstance(flags, int) and flags & 3)
                (self.written if writes else self.read).add(_absolute(path))
        elif event in self.CHANGES:
            self.written.add(_absolute(arguments[0]))


def _absolute(path: object) -> str:
    return os.path.abspath(os.fsdecode(path)) if isinstance(path, str | bytes | Path) else repr(path)


def restore(path: Path, content: bytes) -> None:
    """Put a file back as it was, whatever took its place."""
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        path.unlink()
    elif path.is_dir():
        shutil.rmtree(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
