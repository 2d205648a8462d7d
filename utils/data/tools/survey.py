"""Surveying one data set: drawing from it as training does, and recording faults and statistics.

utils/data/tools/check.py prints it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from model.processor import LasagnaProcessor
from utils.common.terminal import printable
from utils.data.base import Dataset, FlagError
from utils.data.collate import LengthLimit
from utils.data.coverage import NothingUsableError
from utils.data.mixture import Mixture
from utils.data.registry import DATASETS, Entry
from utils.data.remarks import Remarks
from utils.data.types import EvalSample, Recipe, Sample, UnusableItemError

NO_LIMIT = 2**31
ENOUGH_SECONDS = 20.0  # of drawing, to know how fast it is


@dataclass(kw_only=True)
class Finding:
    """The results for one data set; fields that were not measured are None or empty."""

    name: str  # as in a flag, with its split
    training: bool  # drawn from, or walked for evaluation
    problem: str = ""  # why it cannot be opened or yields no sample
    is_missing: bool = False  # the problem is that its files do not exist
    num_images: int | None = None
    num_annotations: int | None = None
    num_classes: int | None = None
    label_range: tuple[int, int] | None = None  # of the values in label files
    num_read: int = 0  # items that were read
    num_bad: int = 0  # those that are unusable
    bad: list[str] = field(default_factory=list)  # "path: reason" of these, without repetition
    dropped: list[str] = field(default_factory=list)  # "path: reason" of items that are not in the index
    notes: dict[str, list[str]] = field(default_factory=dict)  # how data were interpreted -> where
    remarks: list[str] = field(default_factory=list)  # what looks wrong, though it is usable
    tokens: list[int] = field(default_factory=list)  # longest conversation of each sample, text tokens
    num_shortened: int = 0
    num_too_long: int = 0
    samples_per_second: float | None = None

    def is_usable(self, max_bad_fraction: float) -> bool:
        """Whether a run can use it: it opens, and at most this fraction of the items read is bad."""
        return not self.problem and self.num_bad <= max_bad_fraction * self.num_read


def read_training_items(
    dataset: Dataset, recipe: Recipe, see: Callable[[Sample], None] = lambda sample: None
) -> Iterator[str]:
    """Make a sample with all annotations of every item and pass it to `see`; yields "" or the fault per item."""
    everything = replace(recipe, num_all_classes=NO_LIMIT, num_expressions=NO_LIMIT, num_questions=NO_LIMIT)
    for index in range(dataset.num_items):
        problem = ""
        try:
            see(dataset.sample_of(index, np.random.default_rng(index), everything))
        except UnusableItemError as error:
            problem = str(error)
        yield problem


def read_evaluation_items(
    dataset: Dataset, num_items: int, see: Callable[[EvalSample], None] = lambda item: None
) -> Iterator[str]:
    """Read `num_items` evenly spaced evaluation items and pass them to `see`; yields "" or the fault per item."""
    for index in np.linspace(0, len(dataset) - 1, num_items).round().astype(int):
        problem = ""
        try:
            see(dataset[int(index)])
        except (OSError, ValueError) as error:
            problem = str(error)
        yield problem


def full_name(entry: Entry, training: bool) -> str:
    """An entry with its default split written out."""
    if entry.fields:
        return str(entry)
    dataset = DATASETS[entry.name]
    split = dataset.train_split if training else dataset.val_split
    return "|".join((entry.name, *dataset.part_names[:1], str(split)))


@dataclass(frozen=True, kw_only=True)
class Surveyor:
    """Surveys data sets one after another, as thoroughly as its settings say."""

    dataset_dir: str | Path
    recipe: Recipe
    seed: int
    num_samples: int  # drawn from each data set
    read_all: bool  # read every item as well
    max_length: int
    processor: LasagnaProcessor | None  # without one, tokens are not counted

    def open(self, entry: Entry, *, training: bool) -> tuple[Finding, Dataset | None]:
        """Open a data set and record what its index tells. Raises FlagError for a malformed entry."""
        finding = Finding(name=full_name(entry, training), training=training)
        try:
            dataset = entry.open(self.dataset_dir, training=training)
        except FlagError:
            raise
        except (OSError, ValueError) as problem:
            finding.problem = str(problem)
            is_there = isinstance(problem, NothingUsableError)
            finding.is_missing = isinstance(problem, FileNotFoundError) and not is_there
            return finding, None
        finding.num_images, finding.num_annotations = dataset.num_images, dataset.num_annotations
        finding.num_classes = len(dataset.classes) or None
        finding.dropped = list(dataset.dropped)
        return finding, dataset

    def look(self, finding: Finding, dataset: Dataset) -> None:
        """Draw samples or read evaluation items, and record the results."""
        remarks = Remarks(dataset)
        try:
            if finding.training:
                self.draw(finding, dataset, remarks)
            if not finding.training or self.read_all:
                self.read(finding, dataset, remarks)
        except ValueError as problem:  # a mixture found only unusable items
            finding.problem = str(problem)
        finding.bad = list(dict.fromkeys(finding.bad))
        finding.notes = {what: list(places) for what, places in dataset.notes.items()}
        seen = remarks.label_values
        finding.label_range = (min(seen), max(seen)) if seen else None
        finding.remarks = remarks.lines(saw_all=self.read_all)

    def draw(self, finding: Finding, dataset: Dataset, remarks: Remarks) -> None:
        """Draw samples as training does; record speed and length."""
        encode = None if self.processor is None else LengthLimit(self.processor, NO_LIMIT)
        mixture = Mixture([dataset], [1.0], recipe=self.recipe, seed=self.seed, fit=encode)
        seconds, num_drawn = 0.0, 0
        for index in range(self.num_samples):
            if self.read_all and seconds > ENOUGH_SECONDS:
                break  # `read` sees each item in any case
            num_drawn += 1
            start = time.perf_counter()
            sample = mixture[index]
            seconds += time.perf_counter() - start
            finding.bad += sample.skipped
            if not self.read_all:  # otherwise `read` counts each item once
                finding.num_read += 1 + len(sample.skipped)
                finding.num_bad += len(sample.skipped)
            self.measure(finding, sample)
            remarks.see_sample(sample)
        finding.samples_per_second = num_drawn / seconds

    def measure(self, finding: Finding, sample: Sample) -> None:
        """Record the length of a sample, and whether --model_max_length shortens or rejects it."""
        if self.processor is None:
            return
        finding.tokens.append(max(encoded.num_text_tokens for encoded in sample.encoded))
        try:
            fitted = LengthLimit(self.processor, self.max_length)(sample)
        except UnusableItemError:
            finding.num_too_long += 1
        else:
            finding.num_shortened += bool(fitted.classes_left_out or fitted.conversations_left_out)

    def read(self, finding: Finding, dataset: Dataset, remarks: Remarks) -> None:
        """Read every item of a training set, or some or all items of an evaluation set."""
        if finding.training:
            num_items = dataset.num_items
            problems = read_training_items(dataset, self.recipe, remarks.see_sample)
        else:
            num_items = len(dataset) if self.read_all else min(self.num_samples, len(dataset))
            problems = read_evaluation_items(dataset, num_items, remarks.see_item)
        start = time.perf_counter()
        hide = None if self.read_all else True  # None hides it unless stderr is a terminal
        for problem in tqdm(
            problems, total=num_items, desc=printable(finding.name), unit="item", leave=False, disable=hide
        ):
            finding.num_read += 1
            finding.num_bad += bool(problem)
            finding.bad += [problem] if problem else []
        if not finding.training:
            finding.samples_per_second = finding.num_read / (time.perf_counter() - start)
