"""Opening the data sets of `--val_dataset_list`: single entries, or `all` that exist."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from utils.data.base import Dataset
from utils.data.datasets.refer import ReferringDataset
from utils.data.files import names_in
from utils.data.registry import DATASETS, Entry, parse_entry, split_list

logger = logging.getLogger(__name__)

FLAG = "--val_dataset_list"
ALL = "all"  # every evaluation data set that exists
TRAINING_SPLIT = "train"


def open_list(text: str, dataset_dir: str | Path) -> dict[str, Dataset]:
    """`open_datasets` for the text of the flag."""
    return open_datasets(split_list(text, FLAG, separator=","), dataset_dir)


def check_list(text: str) -> None:
    """UserError for an unknown entry; nothing is opened."""
    for part in split_list(text, FLAG, separator=","):
        if part != ALL:
            parse_entry(part, FLAG)


def open_datasets(entries: Sequence[str], dataset_dir: str | Path) -> dict[str, Dataset]:
    """Entry -> opened data set; `all` means those of `known_entries` that exist.

    Raises:
        UserError: an entry is unknown.
        FileNotFoundError: data sets are missing; the message names all of them, and what exists.
    """
    parsed = [parse_entry(text, FLAG) for text in entries if text != ALL]
    root = Path(dataset_dir)
    if not root.is_dir() and (ALL in entries or any(entry.needs_dataset_dir for entry in parsed)):
        raise FileNotFoundError(
            f"--dataset_dir {dataset_dir} is not a folder; pass the root of the data sets"
        )
    opened: dict[str, Dataset] = {}
    missing: list[str] = []
    for entry in parsed:
        try:
            opened[str(entry)] = entry.open(dataset_dir)
        except FileNotFoundError as problem:
            missing.append(str(problem))
    if missing:
        raise FileNotFoundError("; ".join(missing))
    return opened | (open_all(root) if ALL in entries else {})


def open_all(root: Path) -> dict[str, Dataset]:
    """Every evaluation data set in `root`; missing ones are logged."""
    found: dict[str, Dataset] = {}
    missing: list[str] = []
    for entry in known_entries():
        try:
            found[str(entry)] = entry.open(root)
        except FileNotFoundError:
            missing.append(str(entry))
    if not found:
        raise FileNotFoundError(
            f"{FLAG} all: no evaluation data set in {root}, which holds {names_in(root)}; is --dataset_dir right?"
        )
    logger.info("%s all: %s", FLAG, ", ".join(found))
    logger.info("not found in %s: %s", root, ", ".join(missing) or "none")
    return found


def known_entries() -> Iterator[Entry]:
    """An entry for each evaluation split of each data set."""
    for name, dataset in DATASETS.items():
        if dataset.val_split is None:
            continue
        if issubclass(dataset, ReferringDataset):
            split_by, splits = next(iter(dataset.splits_by.items()))
            yield from (Entry(name, (split_by, split)) for split in splits if split != TRAINING_SPLIT)
            continue
        splits = tuple(split for split in dataset.splits if split != TRAINING_SPLIT)
        yield from (Entry(name, (split,) if len(splits) > 1 else ()) for split in splits)
