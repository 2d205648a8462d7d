"""Evaluation: data sets in, a Report out. Used by test_sem.py and by the validation of train_ds.py.

With several processes each sample is predicted by exactly one of them, also when their number does not divide
that of the samples, and every process gets the whole report.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader
from tqdm import tqdm

from utils.asking import EvaluationSettings
from utils.data.base import Dataset
from utils.data.registry import build_val_dataset, parse_entry
from utils.protocols import Protocol, protocol_for
from utils.report import Report, Result
from utils.visualize import SheetRow


def evaluate(
    model: Any,
    processor: Any,
    entries: Sequence[str],
    dataset_dir: str | Path,
    settings: EvaluationSettings,
    *,
    name: str = "",
    show_progress: bool = True,
) -> Report:
    """Evaluate a model on data sets as `--val_dataset_list` names them: ["ade20k", "refcoco|unc|val"].

    Raises ValueError or FileNotFoundError, before anything is predicted, when one is unknown or not there.
    """
    datasets = open_datasets(entries, dataset_dir)
    return evaluate_datasets(model, processor, datasets, settings, name=name, show_progress=show_progress)


def open_datasets(entries: Sequence[str], dataset_dir: str | Path) -> dict[str, Dataset]:
    """Every entry with its index of files; a folder that is missing is an error that says what is there."""
    if not Path(dataset_dir).is_dir():
        raise FileNotFoundError(
            f"--dataset_dir {dataset_dir} is not a folder; pass the root of the data sets"
        )
    return {entry: build_val_dataset(entry, dataset_dir) for entry in entries}


def evaluate_datasets(
    model: Any,
    processor: Any,
    datasets: Mapping[str, Dataset],
    settings: EvaluationSettings,
    *,
    name: str = "",
    show_progress: bool = True,
) -> Report:
    """Evaluate a model on opened data sets. A collective call when several processes run.

    Args:
        model: a LasagnaForConditionalGeneration, wherever it is; it is put into eval mode and back.
        processor: its LasagnaProcessor.
        name: what the report calls the model, its folder for instance.
    """
    with evaluation_mode(model):
        results = tuple(
            evaluate_dataset(model, processor, entry, dataset, settings, show_progress=show_progress)
            for entry, dataset in datasets.items()
        )
    protocol = settings.protocol(constrained=processor.format.answers_every_class)
    return Report(model=name, protocol=protocol, results=results)


def evaluate_dataset(
    model: Any,
    processor: Any,
    entry: str,
    dataset: Dataset,
    settings: EvaluationSettings,
    *,
    show_progress: bool = True,
) -> Result:
    """Predict this process's share of one data set, gather the records of all, and count."""
    started = time.perf_counter()
    chosen = spread(len(dataset), settings.max_samples)
    pictured = {chosen[position] for position in spread(len(chosen), settings.num_pictures)}
    protocol = protocol_for(dataset[chosen[0]], parse_entry(entry, "--val_dataset_list").name, settings)
    rank, world_size = rank_and_world_size()
    mine = chosen[rank::world_size]
    records: dict[int, Any] = {}
    pictures: dict[int, SheetRow] = {}
    with tqdm(total=len(mine), desc=entry, unit="image", disable=not show_progress or rank > 0) as bar:
        for indices, samples in batches(dataset, mine, settings):
            predictions = protocol.predict(model, processor, samples)
            for index, sample, prediction in zip(indices, samples, predictions, strict=True):
                records[index] = protocol.record(sample, prediction)
                if index in pictured:
                    pictures[index] = protocol.picture(sample, prediction)
            bar.update(len(indices))
    return count(entry, protocol, gather(records), gather(pictures), seconds=time.perf_counter() - started)


def count(
    entry: str,
    protocol: Protocol,
    records: dict[int, Any],
    pictures: dict[int, SheetRow | None],
    *,
    seconds: float,
) -> Result:
    """The numbers of a data set, from the records of all its samples in their order."""
    in_order = [records[index] for index in sorted(records)]
    return Result(
        dataset=entry,
        task=protocol.task,
        num_samples=len(in_order),
        sections=protocol.sections(in_order),
        per_class=protocol.per_class(in_order),
        seconds=seconds,
        sheet=tuple(pictures[index] for index in sorted(pictures) if pictures[index] is not None),
    )


def batches(
    dataset: Dataset, indices: Sequence[int], settings: EvaluationSettings
) -> Iterator[tuple[Sequence[int], list[Any]]]:
    """The samples at `indices`, `val_batch_size` at once, read ahead by `workers` processes."""
    loader = DataLoader(
        dataset,
        sampler=indices,
        batch_size=settings.val_batch_size,
        num_workers=settings.workers,
        collate_fn=list,
    )
    for number, samples in enumerate(loader):
        start = number * settings.val_batch_size
        yield indices[start : start + len(samples)], samples


def spread(length: int, most: int | None) -> list[int]:
    """At most `most` indices below `length`, evenly spread; all of them when `most` is None."""
    if most is None or most >= length:
        return list(range(length))
    return [position * length // most for position in range(most)]


@contextmanager
def evaluation_mode(model: torch.nn.Module) -> Iterator[None]:
    """No dropout, no gradients; afterwards the model is as it was.

    no_grad, not inference_mode: what the model computes once and keeps must stay usable for training.
    """
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def rank_and_world_size() -> tuple[int, int]:
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def gather(mine: dict[int, Any]) -> dict[int, Any]:
    """What all processes have, on every one of them. Raises ValueError when two have the same sample."""
    _, world_size = rank_and_world_size()
    if world_size == 1:
        return mine
    shares: list[dict[int, Any]] = [{} for _ in range(world_size)]
    dist.all_gather_object(shares, mine)
    everything: dict[int, Any] = {}
    for share in shares:
        assert not everything.keys() & share.keys(), "a sample was predicted by two processes"
        everything.update(share)
    return everything
