"""What to train on, and at which rates: --dataset and the flags of its sources.

    --dataset "sem_seg||refer_seg||vqa||reason_seg"  --sample_rates "10,6,1,2"
    --sem_seg_data "cocostuff||ade20k||cityscapes"   --sem_seg_rates "6,3,2"
    --refer_seg_data "refclef||refcoco"  --refer_seg_rates "1,3"   (as for every source)
    --neg_refer_seg_data "R-refcoco||fprefcoco"
    --vqa_data llava_instruct_150k  --reason_seg_data "ReasonSeg|train||LISA++|cot"
    --dataset "sem_seg||own_sem:./my_data"
    --dataset "sharded:s3://bucket/boats"

Lists are split at `||`. Own data and shards are sources by themselves; entries: utils/data/registry.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from math import isclose

from model.errors import UserError
from utils.config.data import DataConfig
from utils.data.registry import (
    OWN_DATASETS,
    SHARDED,
    Entry,
    parse_entry,
    parse_own,
    parse_sharded,
    split_list,
)
from utils.data.shards.tree import open_shards

# Default rates, used where a flag is empty. Own data counts as much as all semantic data sets together.
SOURCE_RATES = {"sem_seg": 10.0, "refer_seg": 6.0, "neg_refer_seg": 1.0, "vqa": 1.0, "reason_seg": 2.0}
OWN_RATE = 10.0
MAX_RATE = 1e9  # far from where sums of rates are no numbers any more
DATASET_RATES = {"cocostuff": 6.0, "ade20k": 3.0, "mapillary": 2.0, "cityscapes": 2.0, "openimage": 1.0}


def parse_dataset_flags(flags: DataConfig) -> tuple[Entry, ...]:
    """The data sets to train on, each with its fraction of the draws.

    The fraction is the rate of its source times its rate among the data sets of that source.
    """
    entries = []
    rate_of = source_rates(flags)
    check_data_flags(flags, [source for source in SOURCE_RATES if source not in rate_of])
    total = sum(rate_of.values())
    for source, source_rate in rate_of.items():
        if own := parse_own(source, "--dataset"):
            entries.append(replace(own, rate=source_rate / total))
            continue
        if sharded := parse_sharded(source, "--dataset", training=True):
            whole = sum_of_fractions(sharded)
            entries += [replace(entry, rate=source_rate / total * entry.rate / whole) for entry in sharded]
            continue
        flag = f"--{source}_data"
        members = parse_members(flags, source)
        names = [entry.name for entry in members]
        text = getattr(flags, f"{source}_rates")
        rates = parse_rates(text, names, DATASET_RATES, f"--{source}_rates", flag)
        for entry, rate in zip(members, rates, strict=True):
            share = source_rate / total * rate / sum(rates)
            entries.append(Entry(entry.name, entry.fields, share))
    return tuple(entries)


def source_rates(flags: DataConfig) -> dict[str, float]:
    """Each source of --dataset with its rate: of --sample_rates, or the default."""
    sources = split_list(flags.dataset, "--dataset")
    recipe = dict(SOURCE_RATES)
    for source in sources:
        if parse_own(source, "--dataset"):
            recipe[source] = OWN_RATE
        elif sharded := parse_sharded(source, "--dataset", training=True):
            recipe[source] = open_shards(sharded[0].shards).head.rate * sum_of_fractions(sharded)
        elif source not in SOURCE_RATES:
            known = (*SOURCE_RATES, *(f"{kind}:PATH" for kind in OWN_DATASETS), f"{SHARDED}:PLACE")
            raise UserError(f"--dataset: unknown source {source!r}; known: {', '.join(known)}")
    rates = parse_rates(flags.sample_rates, sources, recipe, "--sample_rates", "--dataset")
    return dict(zip(sources, rates, strict=True))


def check_data_flags(flags: DataConfig, sources: Iterable[str]) -> None:
    """UserError for data sets or rates that cannot be read, of sources that are not drawn from."""
    for source in sources:
        if getattr(flags, f"{source}_data").strip():
            parse_members(flags, source)
        flag = f"--{source}_rates"
        _numbers(getattr(flags, flag[2:]), flag)


def parse_members(flags: DataConfig, source: str) -> list[Entry]:
    """The data sets that the flag of a source names."""
    flag = f"--{source}_data"
    return [parse_entry(text, flag, source) for text in split_list(getattr(flags, flag[2:]), flag)]


def sum_of_fractions(entries: Sequence[Entry]) -> float:
    """The share of entries in the draws of the run that was sharded; exactly 1 for all of them."""
    total = sum(entry.rate for entry in entries)
    return 1.0 if isclose(total, 1.0) else total


def parse_rates(
    text: str, names: Sequence[str], recipe: Mapping[str, float], flag: str, names_flag: str
) -> list[float]:
    """A positive number for each of `names`: from `text` ("6,3,2"), or the defaults of `recipe` if it is empty."""
    rates = _numbers(text, flag)
    if not rates:
        return [recipe.get(name, 1.0) for name in names]
    if len(rates) != len(names):
        raise UserError(
            f"{flag} has {len(rates)} rates ({text}) for the {len(names)} of {names_flag} "
            f"({', '.join(names)}); give one for each, or leave {flag} empty for the defaults"
        )
    return rates


def _numbers(text: str, flag: str) -> list[float]:
    """The rates in a text, none in an empty one."""
    if not text.strip():
        return []
    try:
        rates = [float(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"{flag} takes numbers separated by commas, got {text!r}") from None
    if any(not 0 < rate <= MAX_RATE for rate in rates):
        raise UserError(
            f"{flag}: every rate must be > 0 and at most {MAX_RATE:g}, got {text!r}; leave out data sets that should "
            "not be drawn"
        )
    return rates
