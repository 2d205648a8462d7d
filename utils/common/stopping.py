"""SIGTERM and SIGHUP end a command in order: what is half written is removed, locks are given back.

Python would end at once by either of them, and leave its unfinished files behind. Training and the server have their
own way to stop, which wins while they run (utils/training/signals.py, utils/serving/connection.py).
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

ENDING = (signal.SIGTERM, signal.SIGHUP)  # the second: the terminal was closed
Handler = Callable[[int, FrameType | None], object]


class StoppedError(SystemExit):
    """A signal ends the command; the code is 128 + its number."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.name = signal.Signals(number).name


@contextmanager
def stopped_in_order() -> Iterator[bool]:
    """Inside the block, the first of these signals raises a StoppedError; the second ends the process at once.

    Yields whether it is this block that the error is meant for: False within another one, as in a command that is
    called by another.

    The processes of a launcher end at once by the first: one that waits for another in a collective operation would
    not notice it.
    """
    process = os.getpid()

    def stop(number: int, _: FrameType | None) -> None:
        for one in ENDING:
            if signal.getsignal(one) is stop:
                signal.signal(one, signal.SIG_DFL)
        if os.getpid() != process:  # one that loads data has inherited this
            os.kill(os.getpid(), number)
            return
        raise StoppedError(number)

    is_alone = os.environ.get("WORLD_SIZE", "1") == "1"
    with handled(ENDING if is_alone else (), stop, instead_of=signal.SIG_DFL) as is_outermost:
        yield is_outermost


@contextmanager
def handled(
    numbers: Sequence[signal.Signals], handler: Handler, *, instead_of: signal.Handlers | None = None
) -> Iterator[bool]:
    """Signals of the main thread go to a handler inside the block, but for those that are ignored, as under nohup.

    Yields whether any of them does.

    Args:
        instead_of: only those that have this handler so far; None: any.
    """
    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in numbers:
            now = signal.getsignal(number)
            if now != signal.SIG_IGN and instead_of in (None, now):
                before[number] = signal.signal(number, handler)
    try:
        yield bool(before)
    finally:
        for number, handler_before in before.items():
            signal.signal(number, handler_before)
