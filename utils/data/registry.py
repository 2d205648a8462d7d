"""The registry of data sets, and how flags name them.

    --val_dataset_list "ReasonSeg|val,refcoco|unc|testA"
    --val_dataset_list "own_sem:./my_data|val,sharded:./boats|own_coco"

The list for evaluation is split at commas, the fields of an entry at `|`; what to train on:
utils/data/dataset_flags.py. Own data has a path after a colon; see utils/data/datasets/own.py. `sharded:PLACE|ENTRY`
reads an entry from shards, `sharded:PLACE` all that were sharded for training; see utils/data/tools/shard.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from model.errors import UserError
from utils.data.base import Dataset
from utils.data.datasets.ade20k import Ade20k
from utils.data.datasets.cityscapes import Cityscapes
from utils.data.datasets.cocostuff import CocoStuff
from utils.data.datasets.grefcoco import GRefCoco
from utils.data.datasets.lisa_plus import LisaPlus
from utils.data.datasets.llava_instruct import LlavaInstruct
from utils.data.datasets.llava_mix import LlavaMix
from utils.data.datasets.mapillary import Mapillary
from utils.data.datasets.muse import Muse
from utils.data.datasets.openimages import OpenImages
from utils.data.datasets.own_coco import OwnCoco
from utils.data.datasets.own_jsonl import OwnJsonl
from utils.data.datasets.own_sem import OwnSemantic
from utils.data.datasets.paco_lvis import PacoLvis
from utils.data.datasets.pascal_context import Pc59, Pc459
from utils.data.datasets.pascal_part import PascalPart
from utils.data.datasets.pascal_voc import Pas20
from utils.data.datasets.reason_seg import ReasonSeg
from utils.data.datasets.refer import RefClef, RefCoco, RefCocoG, RefCocoPlus
from utils.data.datasets.refer_absent import (
    FpRefCoco,
    FpRefCocoG,
    FpRefCocoPlus,
    RRefCoco,
    RRefCocoG,
    RRefCocoPlus,
)
from utils.data.datasets.refzom import RefZom
from utils.data.shards.tree import open_shards

DATASETS: dict[str, type[Dataset]] = {
    dataset.name: dataset
    for dataset in (
        Ade20k,
        CocoStuff,
        Cityscapes,
        Mapillary,
        OpenImages,
        PascalPart,
        PacoLvis,
        Pc59,
        Pc459,
        Pas20,
        RefClef,
        RefCoco,
        RefCocoPlus,
        RefCocoG,
        GRefCoco,
        RefZom,
        RRefCoco,
        RRefCocoPlus,
        RRefCocoG,
        FpRefCoco,
        FpRefCocoPlus,
        FpRefCocoG,
        ReasonSeg,
        Muse,
        LisaPlus,
        LlavaInstruct,
        LlavaMix,
    )
}

# Own data, written KIND:PATH: a source and a data set in one.
OWN_DATASETS: dict[str, type[Dataset]] = {
    dataset.name: dataset for dataset in (OwnSemantic, OwnCoco, OwnJsonl)
}

SHARDED = "sharded"  # before the colon of an entry in shards


@dataclass(frozen=True)
class Entry:
    """One data set as named in a flag: `refcoco|unc|testA`."""

    name: str
    fields: tuple[str, ...] = ()
    rate: float = 1.0  # fraction of the draws of a training run; the rates of a run add up to 1
    shards: str = ""  # path or URL of the shards that it is in
    root: str = ""  # in them, the folder that stands for --dataset_dir

    def __str__(self) -> str:
        within = f"{SHARDED}:{self.shards}|" if self.shards else ""
        return within + entry_text(self.name, self.fields)

    @property
    def needs_dataset_dir(self) -> bool:
        """Whether it lies in --dataset_dir."""
        return not (self.is_own or self.shards)

    @property
    def is_own(self) -> bool:
        """Whether this is own data, whose first field is a path."""
        return self.name in OWN_DATASETS

    def open(self, dataset_dir: str | Path, *, training: bool = False) -> Dataset:
        """Open the data set; FileNotFoundError when it is not in `dataset_dir`."""
        kind = (DATASETS | OWN_DATASETS)[self.name]
        if not self.shards:
            return kind.open(dataset_dir, self.fields, training=training)
        tree = open_shards(self.shards)
        root = tree.root / self.root
        fields = with_paths(self.name, self.fields, lambda path: str(root / path))
        dataset = kind.open(root, fields, training=training)
        dataset.shards = tree
        return dataset


def parse_val_list(text: str, flag: str = "--val_dataset_list") -> tuple[Entry, ...]:
    """The data sets to evaluate on: `ReasonSeg|val,refcoco|unc|testA`."""
    return tuple(parse_entry(part, flag) for part in split_list(text, flag, separator=","))


def training_entries(name: str) -> list[Entry]:
    """The entries of a data set for training: one, or one for each of its parts."""
    return [Entry(name, (part,)) for part in DATASETS[name].part_names] or [Entry(name)]


def build_val_dataset(entry: str | Entry, dataset_dir: str | Path) -> Dataset:
    """The data set of evaluation samples for one entry such as `refcoco|unc|testA`.

    Raises UserError for an unknown name or split and FileNotFoundError for a missing data set.
    """
    if isinstance(entry, str):
        entry = parse_entry(entry, "--val_dataset_list")
    return entry.open(dataset_dir)


def parse_entry(text: str, flag: str, source: str | None = None) -> Entry:
    """`name|field|field`; the name must be known, and belong to `source` when that is given."""
    if own := parse_own(text, flag):
        if source is not None:
            raise UserError(f'{flag}: own data is a source; write --dataset "{source}||{text}"')
        return own
    if source is not None and text.startswith(f"{SHARDED}:"):
        raise UserError(f'{flag}: shards are a source; write --dataset "{source}||{text}"')
    if sharded := parse_sharded(text, flag, training=False):
        if len(sharded) > 1:
            raise UserError(f"{flag}: {text} holds several; name one: {', '.join(map(str, sharded))}")
        return sharded[0]
    name, *fields = (part.strip() for part in text.split("|"))
    known = [known for known, dataset in DATASETS.items() if source is None or dataset.source == source]
    if name not in known:
        raise UserError(f"{flag}: unknown data set {name!r}; known: {', '.join(known)}")
    return Entry(name, tuple(fields))


def parse_own(text: str, flag: str) -> Entry | None:
    """`own_sem:PATH|field|field`; None if it is not own data. The path may hold colons, but no `|`."""
    head, *fields = (part.strip() for part in text.split("|"))
    kind, _, path = head.partition(":")
    if kind not in OWN_DATASETS:
        return None
    if not path:
        raise UserError(f"{flag}: {kind} needs the path of the data: {kind}:PATH, got {text!r}")
    return Entry(kind, (path, *fields))


def parse_sharded(text: str, flag: str, *, training: bool) -> list[Entry]:
    """The entries that `sharded:PLACE` or `sharded:PLACE|ENTRY` names; none for an entry of another kind.

    Their rates are the fractions of the draws in the run that was sharded.

    An entry is named as it was when it was sharded, or by its beginning, where that is clear.
    """
    head, *fields = (part.strip() for part in text.split("|"))
    kind, colon, place = head.partition(":")
    if kind != SHARDED or not colon:
        return []
    if not place:
        raise UserError(
            f"{flag}: {SHARDED} needs the folder or URL of the shards: {SHARDED}:PLACE, got {text!r}"
        )
    parts = [part for part in open_shards(place, flag).head.parts if part.training == training]
    purpose = "training" if training else "evaluation"
    known = {
        entry_text(part.name, part.fields): part for part in parts if part.name in DATASETS | OWN_DATASETS
    }
    if not known:
        raise UserError(f"{flag}: {head} holds nothing for {purpose}; name it when sharding")
    wanted = "|".join(fields)
    found = [wanted] if wanted in known else [name for name in known if is_beginning(wanted, name)]
    if not found or (wanted and len(found) > 1):
        raise UserError(
            f"{flag}: {head} holds {'no' if not found else 'more than one'} {wanted!r} for {purpose}; "
            f"it holds {', '.join(known)}"
        )
    return [
        Entry(part.name, part.fields, part.fraction, shards=place, root=part.root)
        for part in (known[name] for name in found)
    ]


def is_beginning(wanted: str, name: str) -> bool:
    """Whether an entry begins with these words: `refcoco` and `refcoco|unc` of `refcoco|unc|val`."""
    return not wanted or name.startswith((f"{wanted}|", f"{wanted}:"))


def entry_text(name: str, fields: Sequence[str]) -> str:
    """An entry as flags have it: `refcoco|unc|val`, `own_sem:PATH|val`."""
    return f"{name}:{'|'.join(fields)}" if name in OWN_DATASETS else "|".join((name, *fields))


def with_paths(name: str, fields: Sequence[str], change: Callable[[str], str]) -> tuple[str, ...]:
    """The fields of an entry with its paths changed; only own data has paths."""
    if name not in OWN_DATASETS:
        return tuple(fields)
    path, *rest = fields
    images = "images="
    return (
        change(path),
        *(
            images + change(field.removeprefix(images)) if field.startswith(images) else field
            for field in rest
        ),
    )


def split_list(text: str, flag: str, separator: str = "||") -> tuple[str, ...]:
    """The parts of a list flag, stripped; UserError for an empty list and for repeated parts."""
    parts = tuple(part.strip() for part in text.split(separator) if part.strip())
    if not parts:
        raise UserError(f"{flag} is empty; name at least one, separated by {separator!r}")
    repeated = {part for part in parts if parts.count(part) > 1}
    if repeated:
        raise UserError(f"{flag} names {', '.join(sorted(repeated))} more than once")
    return parts
