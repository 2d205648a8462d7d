"""losses.jsonl, TensorBoard's files and other trackers: what cannot be written waits in memory, and is tried again.

A step is not worth less because the disk is full while it ends: training goes on for --disk_patience minutes, and a
save of the weights waits until the lines before it are written.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from torch.utils.tensorboard import SummaryWriter

from model.errors import UserError
from model.files import is_regular, read_text, split_lines
from utils.common.commands import one_line
from utils.common.files import append_whole
from utils.training.trackers import Tracker

logger = logging.getLogger(__name__)

LOSSES_FILE = "losses.jsonl"
SUMMARY_FILE = "data.json"  # what became of the samples
RETRY_SECONDS = 20.0  # between two tries to write on a disk that is full or away
SURE_SECONDS = 10.0  # after which values are known to be in TensorBoard's file
Value = tuple[str, float, int]  # tag, value, step
TaggedImage = tuple[str, np.ndarray, int]  # tag, (height, width, 3) uint8, step


class Records:
    """The records of one run, on its first process.

    Args:
        folder: of the run.
        start: step that the run continues from.
        patience: minutes of --disk_patience.
        has_board: whether values and images go to TensorBoard's files.
        trackers: who else gets them.
    """

    def __init__(
        self,
        folder: Path,
        start: int,
        patience: float,
        *,
        has_board: bool = True,
        trackers: Sequence[Tracker] = (),
    ) -> None:
        self.folder, self.patience = folder, patience
        self.has_board, self.trackers = has_board, trackers
        self._purge_step: int | None = start + 1  # steps of an interrupted start, which are run again
        self._lines: list[str] = []  # not in losses.jsonl
        self._values: list[Value | TaggedImage] = []  # may not be in TensorBoard's file
        self._num_sent = 0  # of them: handed to the writer
        self._writer: SummaryWriter | None = None
        self._sure = self._tried = time.monotonic()
        self._failing_since: float | None = None
        self._problem = ""

    @property
    def gave_up(self) -> bool:
        """Whether writing has failed for longer than --disk_patience."""
        since = self._failing_since
        return since is not None and time.monotonic() - since >= 60 * self.patience

    def add(self, line: str = "", values: Sequence[Value] = (), images: Sequence[TaggedImage] = ()) -> None:
        """Record a line of losses.jsonl, values and images; written now, or when the disk allows it."""
        self._lines += [line] if line else []
        if self.has_board:
            self._values += [*values, *images]
        for tracker in self.trackers:
            tracker.add(values, images)
        if self._failing_since is None or time.monotonic() - self._tried >= RETRY_SECONDS:
            self.write()

    def write(self, *, surely: bool = False) -> str | None:
        """Try to write what waits; what hinders it, which is logged once.

        Args:
            surely: also wait until TensorBoard's thread has written.
        """
        self._tried = time.monotonic()
        try:
            if self._lines:
                append_whole(self.folder / LOSSES_FILE, "".join(f"{line}\n" for line in self._lines))
                self._lines.clear()
            self._write_values(surely=surely)
        except OSError as problem:
            self._problem = one_line(problem)
            if self._failing_since is None:
                self._failing_since = self._tried
                logger.error(
                    "%s; it waits, and is tried again for --disk_patience %g minutes",
                    self._problem,
                    self.patience,
                )
            return self._problem
        if self._failing_since is not None:
            logger.warning("%s and TensorBoard's files are written again", self.folder / LOSSES_FILE)
        self._failing_since, self._problem = None, ""
        return None

    def check(self) -> None:
        """UserError when writing has failed for longer than --disk_patience."""
        if self.gave_up:
            raise UserError(
                f"{self._problem}; gave up after --disk_patience {self.patience:g} minutes. Saves are whole: make "
                "room, and the same command continues from the newest"
            )

    def close(self, *, patiently: bool) -> None:
        """Write the rest and close the files.

        Args:
            patiently: try for --disk_patience minutes; else once, as something else has ended the run.

        Raises:
            UserError: it cannot be written.
        """
        try:
            while self.write(surely=True) and patiently:
                self.check()
                time.sleep(RETRY_SECONDS)
            self._close_writer()
        finally:
            for tracker in self.trackers:
                tracker.close()

    def _write_values(self, *, surely: bool) -> None:
        """Hand values to TensorBoard, whose thread writes them; an error of the thread is raised here, if late."""
        if not self.has_board:
            return
        try:
            if self._writer is None:
                # Resolved, as the writer's thread opens its file again and again.
                self._writer = SummaryWriter(str(self.folder.resolve()), purge_step=self._purge_step)
                self._purge_step = None
            for tag, value, step in self._values[self._num_sent :]:
                if isinstance(value, np.ndarray):
                    self._writer.add_image(tag, value, step, dataformats="HWC")
                else:
                    self._writer.add_scalar(tag, value, step)
                self._num_sent += 1
            if surely or time.monotonic() - self._sure >= SURE_SECONDS:
                self._writer.flush()
                self._values, self._num_sent, self._sure = [], 0, time.monotonic()
        except OSError:
            # Its thread has ended: another writer, with a file of its own, gets all that may be missing.
            self._close_writer()
            self._num_sent = 0
            raise

    def _close_writer(self) -> None:
        if self._writer is not None:
            with suppress(OSError):
                self._writer.close()
            self._writer = None


def last_step(path: Path) -> int:
    """The last step in a losses.jsonl, 0 without any."""
    if not is_regular(path):
        return 0
    numbers = (step_of(line) for line in reversed(split_lines(read_text(path))))
    return next((number for number in numbers if number is not None), 0)


def step_of(line: str) -> int | None:
    """The step of a line of losses.jsonl; None for the last one of a process that was killed, or of others."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
