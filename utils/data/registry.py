"""Which data sets there are, and the one place where data set flags are read.

    --dataset "sem_seg||refer_seg||vqa||reason_seg"  --sample_rates "10,6,1,2"
    --sem_seg_data "cocostuff||ade20k||cityscapes"   --sem_seg_rates "6,3,2"
    --refer_seg_data "refclef||refcoco"  --vqa_data llava_instruct_150k  --reason_seg_data "ReasonSeg|train"
    --val_dataset_list "ReasonSeg|val,refcoco|unc|testA"

Lists for training are split at `||`, the list for evaluation at commas, the fields of an entry at `|`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from utils.data.ade20k import Ade20k
from utils.data.base import Dataset
from utils.data.cityscapes import Cityscapes
from utils.data.cocostuff import CocoStuff
from utils.data.grefcoco import GRefCoco
from utils.data.llava_instruct import LlavaInstruct
from utils.data.reason_seg import ReasonSeg
from utils.data.refer import RefClef, RefCoco, RefCocoG, RefCocoPlus

DATASETS: dict[str, type[Dataset]] = {
    dataset.name: dataset
    for dataset in (
        Ade20k,
        CocoStuff,
        Cityscapes,
        RefClef,
        RefCoco,
        RefCocoPlus,
        RefCocoG,
        GRefCoco,
        ReasonSeg,
        LlavaInstruct,
    )
}

# The recipe's rates, taken where a flag states none.
SOURCE_RATES = {"sem_seg": 10.0, "refer_seg": 6.0, "vqa": 1.0, "reason_seg": 2.0}
SEM_SEG_RATES = {"cocostuff": 6.0, "ade20k": 3.0, "mapillary": 2.0, "cityscapes": 2.0, "openimage": 1.0}


class DatasetFlags(Protocol):
    """The settings that say what to train on; TrainConfig has them."""

    dataset: str
    sample_rates: str
    sem_seg_data: str
    sem_seg_rates: str
    refer_seg_data: str
    vqa_data: str
    reason_seg_data: str


@dataclass(frozen=True)
class Entry:
    """One data set named in a flag: `refcoco|unc|testA`."""

    name: str
    fields: tuple[str, ...] = ()
    rate: float = 1.0  # share among the data sets of a training run; they add up to 1

    def __str__(self) -> str:
        return "|".join((self.name, *self.fields))

    def open(self, dataset_dir: str | Path, *, training: bool = False) -> Dataset:
        """The data set itself; FileNotFoundError when it is not under `dataset_dir`."""
        return DATASETS[self.name].open(dataset_dir, self.fields, training=training)


def parse_dataset_flags(flags: DatasetFlags) -> tuple[Entry, ...]:
    """The data sets to train on, each with its share of the draws.

    A data set's share is its source's rate times its own rate among the data sets of that source.
    """
    sources = split_list(flags.dataset, "--dataset")
    for source in sources:
        if source not in SOURCE_RATES:
            raise ValueError(f"--dataset: unknown source {source!r}; known: {', '.join(SOURCE_RATES)}")
    source_rates = parse_rates(flags.sample_rates, sources, SOURCE_RATES, "--sample_rates", "--dataset")

    entries = []
    for source, source_rate in zip(sources, source_rates, strict=True):
        flag = f"--{source}_data"
        members = [
            parse_entry(text, flag, source) for text in split_list(getattr(flags, f"{source}_data"), flag)
        ]
        rates = [1.0] * len(members)
        if source == "sem_seg":
            names = [entry.name for entry in members]
            rates = parse_rates(flags.sem_seg_rates, names, SEM_SEG_RATES, "--sem_seg_rates", flag)
        for entry, rate in zip(members, rates, strict=True):
            share = source_rate / sum(source_rates) * rate / sum(rates)
            entries.append(Entry(entry.name, entry.fields, share))
    return tuple(entries)


def parse_val_list(text: str, flag: str = "--val_dataset_list") -> tuple[Entry, ...]:
    """The data sets to evaluate on: `ReasonSeg|val,refcoco|unc|testA`."""
    return tuple(parse_entry(part, flag) for part in split_list(text, flag, separator=","))


def build_val_dataset(entry: str | Entry, dataset_dir: str | Path) -> Dataset:
    """A sized, indexable data set of evaluation samples for one entry such as `refcoco|unc|testA`.

    Raises ValueError for an unknown name or split and FileNotFoundError for a data set that is not there.
    """
    if isinstance(entry, str):
        entry = parse_entry(entry, "--val_dataset_list")
    return entry.open(dataset_dir)


def parse_entry(text: str, flag: str, source: str | None = None) -> Entry:
    """`name|field|field`; the name must be known, and belong to `source` when that is given."""
    name, *fields = (part.strip() for part in text.split("|"))
    known = [known for known, dataset in DATASETS.items() if source is None or dataset.source == source]
    if name not in known:
        raise ValueError(f"{flag}: unknown data set {name!r}; known: {', '.join(known)}")
    return Entry(name, tuple(fields))


def split_list(text: str, flag: str, separator: str = "||") -> tuple[str, ...]:
    """The parts of a list flag, stripped; it must name something, and nothing twice."""
    parts = tuple(part.strip() for part in text.split(separator) if part.strip())
    if not parts:
        raise ValueError(f"{flag} is empty; name at least one, separated by {separator!r}")
    repeated = {part for part in parts if parts.count(part) > 1}
    if repeated:
        raise ValueError(f"{flag} names {', '.join(sorted(repeated))} more than once")
    return parts


def parse_rates(
    text: str, names: Sequence[str], recipe: Mapping[str, float], flag: str, names_flag: str
) -> list[float]:
    """A positive number for each of `names`: from `text` ("6,3,2"), or the recipe's when it is empty."""
    if not text.strip():
        return [recipe.get(name, 1.0) for name in names]
    try:
        rates = [float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"{flag} takes numbers separated by commas, got {text!r}") from None
    if len(rates) != len(names):
        raise ValueError(
            f"{flag} has {len(rates)} rates ({text}) for the {len(names)} of {names_flag} "
            f"({', '.join(names)}); give one each, or leave {flag} empty for the recipe's"
        )
    if any(not rate > 0 for rate in rates):
        raise ValueError(f"{flag}: every rate must be > 0, got {text!r}; leave out what should not be drawn")
    return rates
