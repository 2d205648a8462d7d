"""What is kept of finished samples until they are counted: on disk where an evaluation writes files, else in memory.

An evaluation of thousands of images takes no more memory at its end than after its first images. The file has no
name: nothing is left of it, whatever ends the process. What outlives the process is in utils/evaluation/resume.py.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from model.write_errors import writing
from utils.evaluation.serialization import from_json, to_json


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What is needed of a sample after the last one."""

    record: Any  # of the protocol; one of RECORD_KINDS in serialization.py, or a list of them
    answers: tuple[Mapping[str, Any], ...] = ()  # entries of the JSON file of predictions


@dataclass(kw_only=True)
class Spool:
    """Samples by index.

    folder: for the file; None: they stay in memory, as in the validation of a training run.
    """

    folder: Path | None
    _in_memory: dict[int, Kept] = field(default_factory=dict)
    _places: dict[int, int] = field(default_factory=dict)  # index -> offset of its line
    _file: IO[bytes] | None = None

    def __setitem__(self, index: int, kept: Kept) -> None:
        if self.folder is None:
            self._in_memory[index] = kept
            return
        line = json.dumps([to_json(kept.record), to_json(kept.answers)]).encode() + b"\n"
        with writing(self.folder):
            if self._file is None:
                self._file = tempfile.TemporaryFile(dir=self.folder)  # noqa: SIM115 (open as long as this is)
            place = self._file.seek(0, 2)
            self._file.write(line)
            self._file.flush()
        self._places[index] = place

    def __getitem__(self, index: int) -> Kept:
        if self.folder is None:
            return self._in_memory[index]
        assert self._file is not None
        self._file.seek(self._places[index])
        record, answers = json.loads(self._file.readline())
        return Kept(record=from_json(record), answers=from_json(answers))

    def close(self) -> None:
        """Forget everything."""
        if self._file is not None:
            self._file.close()
        self._file = None
        self._places.clear()
        self._in_memory.clear()

    def __contains__(self, index: int) -> bool:
        return index in self._places or index in self._in_memory

    def __iter__(self) -> Iterator[int]:
        return iter(self._in_memory if self.folder is None else self._places)

    def __len__(self) -> int:
        return len(self._in_memory) + len(self._places)
