"""The stream of training samples: sample i is a pure function of (seed, i)."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from model.errors import UserError
from model.text.format import SequenceFormat
from utils.config.data import DataConfig
from utils.data.base import Dataset
from utils.data.dataset_flags import parse_dataset_flags
from utils.data.types import Recipe, Sample, UnusableItemError

logger = logging.getLogger(__name__)

MAX_RETRIES = 100  # unusable items in a row, after which the data set is considered broken


class Mixture:
    """An endless stream of samples from several data sets, drawn at given rates.

    `mixture[i]` is a function of the data on disk, the recipe, the seed and i only: it does not depend on earlier
    draws, workers, world size or batch size. An unusable item is replaced by the draw (seed, i, retry) of the same
    data set, so that bad files do not change the rates; `Sample.skipped` names the items that a sample replaces.
    """

    def __init__(
        self,
        sources: Sequence[Dataset],
        rates: Sequence[float],
        *,
        recipe: Recipe,
        seed: int,
        fit: Callable[[Sample], Sample] | None = None,  # shortens a sample, or raises UnusableItemError
    ) -> None:
        if not sources or len(sources) != len(rates):
            raise ValueError(f"a mixture needs one rate per data set, got {len(rates)} for {len(sources)}")
        if seed < 0:
            raise ValueError(f"seed must be >= 0, got {seed}")
        self.sources = tuple(sources)
        self.rates = np.asarray(rates, dtype=np.float64) / np.sum(rates)  # (num_sources,)
        self.recipe = recipe
        self.seed = seed
        self.fit = fit

    def __getitem__(self, index: int) -> Sample:
        """Sample `index` >= 0. Raises UserError after MAX_RETRIES unusable items in a row."""
        if index < 0:
            raise IndexError(f"samples are counted from 0, got {index}")
        skipped: list[str] = []
        rng = np.random.default_rng((self.seed, index))
        source = self.sources[rng.choice(len(self.sources), p=self.rates)]
        for retry in range(1, MAX_RETRIES + 1):
            try:
                sample = source.draw(rng, self.recipe)
                if self.fit is not None:
                    sample = self.fit(sample)
            except UnusableItemError as problem:
                logger.warning("%s: sample %d replaced: %s", source.name, index, problem)
                skipped.append(str(problem))
                rng = np.random.default_rng((self.seed, index, retry))
            else:
                return dataclasses.replace(sample, dataset=source.name, skipped=tuple(skipped))
        raise UserError(
            f"{source.name}|{source.split}: {MAX_RETRIES} unusable items in a row; the last: {skipped[-1]}"
        )

    def describe(self) -> str:
        """One line per data set: its fraction of the draws, its size, how many items were dropped from its index."""
        return "\n".join(
            f"{source.name}|{source.split}: {rate:.1%} of the draws, {len(source)} items"
            + (f", {len(source.dropped)} dropped" if source.dropped else "")
            for source, rate in zip(self.sources, self.rates, strict=True)
        )


def build_train_mixture(
    config: DataConfig, format: SequenceFormat, fit: Callable[[Sample], Sample] | None = None
) -> Mixture:
    """The mixture of a training configuration; a missing data set is an error.

    `fit`, such as collate.LengthLimit, may shorten a sample, or reject it with an UnusableItemError.
    """
    entries = parse_dataset_flags(config)
    sources = [entry.open(config.dataset_dir, training=True) for entry in entries]
    rates = [entry.rate for entry in entries]
    return Mixture(sources, rates, recipe=recipe_of(config, format), seed=config.seed, fit=fit)


def recipe_of(config: DataConfig, format: SequenceFormat) -> Recipe:
    """The part of a run's settings that decides how annotations become conversations."""
    return Recipe(
        format=format,
        num_all_classes=config.num_all_classes,
        num_expressions=config.num_expressions,
        num_questions=config.num_questions,
        explanatory=config.explanatory,
        likely_negatives=config.likely_negatives,
    )


class BatchIndices:
    """A batch sampler: the sample indices of one rank's micro-batches, from sample `first_sample` of the run on.

    Micro-batch m after it holds samples first_sample + m * batch_size and the following, and rank r of w takes
    micro-batches r, r + w, r + 2w, ...: no two ranks draw the same sample, and two processes see in one step what one
    process sees in two accumulated micro-batches. So a run goes on where it stopped, whatever their number was.
    """

    def __init__(
        self,
        *,
        batch_size: int,
        num_batches: int,
        first_sample: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_size < 1 or not 0 <= rank < world_size:
            raise ValueError(
                f"need batch_size >= 1 and 0 <= rank < world_size: {batch_size}, {rank}, {world_size}"
            )
        self.batch_size = batch_size
        self.num_batches = num_batches  # micro-batches of this rank
        self.first_sample = first_sample  # how many samples the run has used, as after a resume
        self.rank = rank
        self.world_size = world_size

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.num_batches):
            first = self.first_sample + (step * self.world_size + self.rank) * self.batch_size
            yield list(range(first, first + self.batch_size))
