"""Finished samples of an evaluation on disk, so that `--resume` can continue one that was killed.

REPORT_DIR/finished/STEM.RANK.jsonl: one file for each data set and process. The first line identifies the
evaluation, every further one is a sample: its index and an Outcome as utils/evaluation/serialization.py writes it.
Files are append-only, a batch at a time. A line that is incomplete because of the kill is dropped, and its sample is
predicted again.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from model.errors import UserError
from model.write_errors import writing
from utils.common.files import append_whole
from utils.evaluation.model import SegmentationModel
from utils.evaluation.serialization import from_json, to_json
from utils.reports.best_and_worst import CompressedRow

FOLDER = "finished"
PRECISION = "encoder_precision"  # in the settings of the protocol
STATE_VERSION = 5  # increased when the format of the lines changes
ELEMENTS_READ = 1024  # of each weight, for the fingerprint


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What is kept of a sample after its prediction."""

    record: Any  # of the protocol; one of RECORD_KINDS in serialization.py, or a list of them
    score: float = math.nan  # how good the prediction is, 0 to 1; NaN where it was not needed
    row: CompressedRow | None = None  # of samples that may be shown in the report
    answers: tuple[Mapping[str, Any], ...] = ()  # entries of the JSON file of predictions


@dataclass(frozen=True, kw_only=True)
class RunIdentity:
    """What has to agree for finished samples to be reused."""

    model: str  # fingerprint of the weights
    entry: str  # of --val_dataset_list
    num_items: int  # of the data set
    protocol: Mapping[str, Any]
    predictions: str  # folder of --save_predictions, "" without
    num_shown: int  # best and worst samples that are kept with their images
    num_sheet_rows: int  # of the sheet


def fingerprint(model: SegmentationModel) -> str:
    """A hash of a model: its prompt and format, and names, shapes, dtypes and some elements of all weights.

    Not all elements: copying seven billion of them from a device takes longer than a hundred samples.
    """
    digest = hashlib.sha256()
    digest.update(repr((model.config.sequence_format, model.config.prompt)).encode())
    for name, tensor in sorted(model.state_dict().items()):
        flat = tensor.detach().reshape(-1)
        some = flat[:: max(len(flat) // ELEMENTS_READ, 1)][: 2 * ELEMENTS_READ]
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(some.to(device="cpu", dtype=torch.float64).numpy().tobytes())
    return digest.hexdigest()[:16]


def discard(report_dir: Path) -> None:
    """Delete the finished samples of an earlier evaluation."""
    for path in sorted((report_dir / FOLDER).glob("*.jsonl")):
        path.unlink()


def has_samples(report_dir: Path) -> bool:
    return any((report_dir / FOLDER).glob("*.jsonl"))


class Shard:
    """This process's file of one data set."""

    def __init__(self, report_dir: Path, stem: str, rank: int, identity: RunIdentity) -> None:
        self.folder = report_dir / FOLDER
        self.stem = stem
        self.path = self.folder / f"{stem}.{rank}.jsonl"
        self.header = json.loads(
            json.dumps({"state_version": STATE_VERSION, **asdict(identity)}, default=str)
        )

    def read(self) -> Iterator[tuple[int, Outcome]]:
        """The finished samples in the files of all processes that are visible from this machine, one at a time.

        Raises UserError when a file belongs to another evaluation or is damaged.
        """
        for path in sorted(self.folder.glob(f"{self.stem}.*.jsonl")):
            if path.name.removeprefix(f"{self.stem}.").removesuffix(".jsonl").isdecimal():
                yield from self._read_file(path)

    def append(self, outcomes: Mapping[int, Outcome]) -> None:
        """Append samples; they are on disk when this returns."""
        lines = [
            {
                "index": index,
                **{field.name: to_json(getattr(outcome, field.name)) for field in fields(outcome)},
            }
            for index, outcome in outcomes.items()
        ]
        if not self.path.exists():
            with writing(self.path):
                self.folder.mkdir(parents=True, exist_ok=True)
            lines = [self.header, *lines]
        append_whole(self.path, "".join(json.dumps(line) + "\n" for line in lines), sync=True)

    def mend(self) -> None:
        """Truncate an incomplete last line, so that the next sample starts on a new line."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            whole = sum(len(line) for line in file if line.endswith(b"\n"))
        if not whole:
            self.path.unlink()
        elif whole < self.path.stat().st_size:
            os.truncate(self.path, whole)

    def _read_file(self, path: Path) -> Iterator[tuple[int, Outcome]]:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):  # cut off by a kill
                    return
                found = self._read_line(path, number, line)
                if found is not None:
                    yield found

    def _read_line(self, path: Path, number: int, line: bytes) -> tuple[int, Outcome] | None:
        """A sample; None for the first line, which is compared with this evaluation."""
        try:
            content = json.loads(line.decode("utf-8", errors="replace"))
            if number > 1:
                index = content.pop("index")
                return index, Outcome(**{name: from_json(value) for name, value in content.items()})
        except (ValueError, KeyError, TypeError, AttributeError) as problem:
            raise UserError(
                f"{path}, line {number}: {problem}; delete the file, its samples are then predicted again"
            ) from None
        self._check(content, path)
        return None

    def _check(self, header: Any, path: Path) -> None:
        """UserError when the first line of a file is that of another evaluation."""
        cure = "leave out --resume to start anew, or choose another --report_dir"
        if not isinstance(header, dict) or header.get("state_version") != STATE_VERSION:
            found = header.get("state_version") if isinstance(header, dict) else None
            raise UserError(f"{path}: written as version {found}, this program reads {STATE_VERSION}; {cure}")
        before, now = flatten(header), flatten(self.header)
        is_same_precision = before.get(PRECISION) == now.get(PRECISION)  # which the weights have
        if header.get("model") != self.header["model"] and is_same_precision:
            raise UserError(f"{path}: holds the samples of another model (other weights); {cure}")
        changed = [
            f"{name} was {before.get(name)!r}, is {now.get(name)!r}"
            for name in sorted(before.keys() | now.keys())
            if before.get(name) != now.get(name) and name != "model"
        ]
        if changed:
            raise UserError(f"{path}: the evaluation was started differently ({'; '.join(changed)}); {cure}")


def flatten(header: Mapping[str, Any]) -> dict[str, Any]:
    """The header with the settings of the protocol at its top level."""
    protocol = header.get("protocol")
    rest = {name: value for name, value in header.items() if name != "protocol"}
    return {**rest, **(protocol if isinstance(protocol, Mapping) else {})}


def unfinished(batches: Sequence[Sequence[int]], finished: Container[int]) -> list[Sequence[int]]:
    """The batches with a sample to predict, as a whole: the other samples of a batch may affect its rounding."""
    return [batch for batch in batches if any(index not in finished for index in batch)]
