"""Data counters of a run: samples of each data set, unusable items, samples that were shortened."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from model.errors import UserError
from utils.common.distributed import gather_objects, sum_over_processes
from utils.common.files import write_whole
from utils.data.types import Batch

# The fraction of unusable items is taken of at least this many draws: one bad file in the first ten stops no run.
MIN_DRAWS = 1000
NUMBERS = ("samples", "unusable", "shortened", "classes_left_out", "conversations_left_out")
MAX_NAMED = 5  # unusable items that are kept by name


@dataclass
class DataCounts:
    """Totals of a run over all processes and restarts.

    `add` counts the batches of this process; `gather` adds the counts of all processes to the totals of each.
    """

    samples: int = 0
    unusable: int = 0  # draws that were replaced by another
    shortened: int = 0  # samples from which something was left out to fit the maximum length
    classes_left_out: int = 0
    conversations_left_out: int = 0
    datasets: dict[str, int] = field(default_factory=dict)  # samples of each data set
    first: list[str] = field(default_factory=list)  # "path: reason" of the first unusable items
    _new: Counter[str] = field(default_factory=Counter, repr=False)
    _new_datasets: Counter[str] = field(default_factory=Counter, repr=False)
    _new_names: list[str] = field(default_factory=list, repr=False)

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> DataCounts:
        """The inverse of `state`."""
        return cls(**state)

    def state(self) -> dict[str, Any]:
        """The totals as plain values, for a checkpoint."""
        return {name: value for name, value in asdict(self).items() if not name.startswith("_")}

    def add(self, batch: Batch) -> None:
        """Count a batch of this process."""
        self._new.update(
            samples=len(batch.sources),
            unusable=len(batch.skipped),
            shortened=batch.num_shortened,
            classes_left_out=batch.classes_left_out,
            conversations_left_out=batch.conversations_left_out,
        )
        self._new_datasets.update(batch.datasets)
        self._new_names += batch.skipped

    def gather(self) -> None:
        """Add what all processes have counted since the last call to the totals. A collective operation."""
        sums = sum_over_processes([self._new[name] for name in NUMBERS])
        new = {name: int(number) for name, number in zip(NUMBERS, sums, strict=True)}
        for name, number in new.items():
            setattr(self, name, getattr(self, name) + number)
        everyone: Counter[str] = Counter(self.datasets)
        for of_process in gather_objects(dict(self._new_datasets)):
            everyone.update(of_process)
        self.datasets = dict(sorted(everyone.items()))
        if new["unusable"] and len(self.first) < MAX_NAMED:  # the same on every process
            mine = list(dict.fromkeys(self._new_names))[:MAX_NAMED]
            names = (name for process in gather_objects(mine) for name in process)
            self.first = list(dict.fromkeys([*self.first, *names]))[:MAX_NAMED]
        self._new.clear()
        self._new_datasets.clear()
        self._new_names.clear()

    def check(self, max_bad_fraction: float) -> None:
        """UserError when more than the fraction `max_bad_fraction` of the draws could not be used."""
        draws = self.samples + self.unusable
        if self.unusable > max_bad_fraction * max(draws, MIN_DRAWS):
            raise UserError(
                f"{self.unusable} of {draws} draws could not be used, more than --max_bad_fraction "
                f"{max_bad_fraction:g} (of {MIN_DRAWS} draws at least); first: {'; '.join(self.first)}. "
                "`python -m utils.data.tools.check --all` finds all such files; mend or remove them, or raise the "
                "limit"
            )

    def describe(self) -> str:
        """One line, and one for each of the first unusable items."""
        fraction = self.unusable / max(self.samples + self.unusable, 1)
        text = f"{self.samples} samples; {self.unusable} unusable items replaced ({fraction:.2%})"
        if self.shortened:
            text += (
                f"; {self.shortened} samples shortened to --model_max_length, by {self.classes_left_out} absent "
                f"classes and {self.conversations_left_out} conversations"
            )
        return "\n".join((text, *(f"  unusable: {item}" for item in self.first)))

    def save(self, path: Path) -> None:
        """Write the totals, for a reader."""
        write_whole(path, json.dumps(self.state(), indent=2, ensure_ascii=False) + "\n")
