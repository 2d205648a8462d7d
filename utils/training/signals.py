"""Signals to a training run, and the end of its launcher.

SIGTERM, SIGUSR1 (what schedulers send before they take a machine away), SIGINT (Ctrl-C) and SIGHUP (the terminal was
closed; not under nohup) let the running step end, save, and exit with 128 + the signal's number; the second one ends
the process at once. The processes of a launcher that dies keep running: they watch it, and stop as after a SIGTERM,
within `GRACE` seconds unless a save is in progress.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Self

from utils.common.processes import command_of, end_now, parent_of, start_of

WATCHED = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
LAUNCHERS = re.compile(r"deepspeed|torchrun|torch[./]distributed|accelerate|mpirun|mpiexec|slurmstepd")
LOOK_EVERY, GRACE = 1.0, 8.0  # seconds


class StopSignals:
    """Catches the signals inside its `with` block.

    A signal ends the process by SystemExit where nothing is lost by it: before training, and in a validation.
    Inside `deferred` it is only remembered as `received`, for the training loop to save first.
    """

    def __init__(self) -> None:
        self.received = 0  # number of the first signal
        self.saving = False
        self._defers = False
        self._process = os.getpid()
        self._before: dict[signal.Signals, Callable[..., object] | int | None] = {}
        self._ended = threading.Event()

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {
                number: signal.signal(number, self._handle)
                for number in WATCHED
                if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN
            }
        try:
            launchers = launchers_of(os.getpid())
            if launchers:
                threading.Thread(target=self._watch, args=(launchers,), daemon=True).start()
        except BaseException:  # a signal that comes here: nobody would call __exit__
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ended.set()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def deferred(self, defers: bool = True) -> Iterator[None]:
        """A signal in this block waits for the end of the step; with False, it ends the process as elsewhere."""
        before, self._defers = self._defers, defers
        try:
            if not defers and self.received:
                self.stop(self.received)
            yield
        finally:
            self._defers = before

    def stop(self, number: int) -> None:
        """End the process, as the signal asks for."""
        raise SystemExit(128 + number)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a process that loads data: this one decides for it
            signal.signal(number, signal.SIG_DFL if number != signal.SIGINT else signal.SIG_IGN)
            return
        if self.received:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        self.received = number
        if not self._defers:
            self.stop(number)
        name = signal.Signals(number).name
        print(f"{name}: saving after this step; once more: ends at once", file=sys.stderr, flush=True)

    def _watch(self, launchers: dict[int, str]) -> None:
        while not self._ended.wait(LOOK_EVERY):
            if all(start_of(pid) == start for pid, start in launchers.items()):
                continue
            if not self.received:
                os.kill(os.getpid(), signal.SIGTERM)
            deadline = time.monotonic() + GRACE
            while not self._ended.wait(0.1):
                if time.monotonic() > deadline and not self.saving:
                    end_now(128 + signal.SIGTERM)
            return


def launchers_of(pid: int) -> dict[int, str]:
    """The launchers that a process was started by, number -> start: its parent, and that one's if it is one too."""
    found: dict[int, str] = {}
    while (pid := parent_of(pid)) > 1 and LAUNCHERS.search(command_of(pid)):
        start = start_of(pid)
        if start is None:
            break
        found[pid] = start
    return found
