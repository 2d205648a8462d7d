"""Which samples are evaluated, and in which batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from utils.data.base import Dataset
from utils.data.types import EvalSample


def spread(length: int, most: int | None) -> list[int]:
    """At most `most` indices below `length`, evenly spread; all of them when `most` is None."""
    if most is None or most >= length:
        return list(range(length))
    return [position * length // most for position in range(most)]


def in_batches(indices: Sequence[int], batch_size: int) -> list[Sequence[int]]:
    """The indices in groups of `batch_size`; the last may be smaller."""
    return [indices[start : start + batch_size] for start in range(0, len(indices), batch_size)]


def load(
    dataset: Dataset, batches: Sequence[Sequence[int]], workers: int
) -> Iterator[tuple[Sequence[int], list[EvalSample]]]:
    """The indices and the samples of each batch, read ahead by `workers` processes."""
    # torch's Dataset is generic; ours has its two methods and is none.
    loader: DataLoader[EvalSample] = DataLoader(
        cast("TorchDataset[EvalSample]", dataset),
        batch_sampler=[list(batch) for batch in batches],
        num_workers=workers,
        collate_fn=list,
    )
    yield from zip(batches, loader, strict=True)
