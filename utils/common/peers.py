"""The processes of a launcher watch each other: one that dies ends the others with its name.

Collective operations wait for everybody, NCCL's for half an hour. So every process writes down once a second that it
is alive and how far it is, and reads what the next one wrote (the last one reads the first):

    rank 0 -> rank 1 -> rank 2 -> rank 0        who finds a process dead says so to all

A process of the same machine is dead when the system says so, another one when it has been silent for --rank_timeout.
"""

from __future__ import annotations

import json
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from types import TracebackType
from typing import Any, Self

import torch.distributed as dist

from model.errors import UserError
from utils.common.commands import one_line
from utils.common.processes import end_now, start_of

BEAT, GRACE = 1.0, 8.0  # seconds: between two looks; for a process to end by itself after another one has
LOST = "lost"
CONNECTION = re.compile("gloo|nccl|connection|socket|peer|timed? ?out|store|process group", re.IGNORECASE)
LOADER = re.compile(
    r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (?:is )?(killed by signal: [\w ]+|exited unexpectedly)"
)
ADVICE = (
    "its own output may say why; without a word there, look for the out-of-memory killer in `dmesg` and in the "
    "scheduler's log of that host"
)


class LostError(UserError):
    """A process that the run needs is gone."""

    exit_code = 4
    for_everybody = (
        True  # every process that is left says it: the one that speaks for all may be the lost one
    )


class Peers:
    """Watches the other processes inside its `with` block; what their loss breaks there becomes a `LostError`.

    Args:
        store: what the processes share (`rendezvous.meet`); None for a single process.
        timeout: seconds of silence after which a process counts as dead; None: any silence is waited out.
        command: what messages begin with.
        cure: the last sentence of every message: how to go on.

    Attributes:
        where: says how far this process is, as "in step 17".
    """

    def __init__(self, store: dist.Store | None, timeout: float | None, *, command: str, cure: str) -> None:
        self.where: Callable[[], str] = lambda: "at its start"
        self._store, self._timeout, self._command, self._cure = store, timeout, command, cure
        self._rank: int = dist.get_rank() if store is not None else 0
        self._size: int = dist.get_world_size() if store is not None else 1
        self._ended = threading.Event()
        self._lost: str | None = None
        self._watched = (self._rank + 1) % self._size
        # What the watched process, and the first one, which has the store, wrote last.
        self._last: dict[str, Any] = {"rank": self._watched}
        self._first: dict[str, Any] = {"rank": 0}
        self._heard = time.monotonic()
        self._beats = 0

    def __enter__(self) -> Self:
        if self._store is not None:
            self._beat("runs")
            with suppress(RuntimeError):  # they have met, so this takes moments
                self._store.wait(["0", str(self._watched)], timedelta(seconds=GRACE))
                self._first, self._last = self._read(0), self._read(self._watched)
            threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None and (worker := LOADER.search(str(error))):
            error = LostError(self._about_loader(worker))
        elif error is not None and self._store is not None and _is_about_connection(error):
            self._wait_for_verdict()
            if self._lost is not None:  # the thread goes on: it ends what cannot end without the lost process
                raise LostError(self._lost) from None
        if self._store is not None:
            with suppress(RuntimeError):
                self._beat("done" if error is None else f"ended: {type(error).__name__}: {_text_of(error)}")
        self._ended.set()
        if isinstance(error, LostError):
            raise error from None

    def _wait_for_verdict(self) -> None:
        # An error comes at once where a connection breaks; that a process of another machine is silent takes longer.
        deadline = time.monotonic() + max(GRACE, (self._timeout or 0) + 2 * BEAT)
        while self._lost is None and time.monotonic() < deadline:
            time.sleep(0.1)

    def _watch(self) -> None:
        assert self._store is not None
        while not self._ended.wait(BEAT):
            try:
                self._beat("runs")
                if found := self._look():
                    self._store.set(LOST, found)  # for the others
                self._lost = found
            except RuntimeError:  # the store is gone
                told = self._last if self._watched == 0 else self._first
                self._lost = self._verdict(told, "has died, or cannot be reached")
            if self._lost is not None:
                self._end()
                return

    def _end(self) -> None:
        """Give this process time to end by itself, as it does when the lost one ended in order, or in an error."""
        if not self._ended.wait(GRACE):
            print(f"{self._command}: {self._lost}", file=sys.stderr, flush=True)
            end_now(LostError.exit_code)

    def _beat(self, state: str) -> None:
        assert self._store is not None
        self._beats += 1
        mine = {
            "rank": self._rank,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "place": _place(),
            "start": start_of(os.getpid()),
            "where": self.where(),
            "beat": self._beats,
            "state": state,
        }
        self._store.set(str(self._rank), json.dumps(mine))

    def _look(self) -> str | None:
        """Who is lost, as a message; None if nobody is."""
        assert self._store is not None
        if self._store.check([LOST]):
            return self._store.get(LOST).decode()
        if self._store.check([str(self._watched)]):
            told = self._read(self._watched)
            if told["beat"] != self._last.get("beat"):
                self._heard = time.monotonic()
            self._last = told
            if told["state"].startswith("ended"):
                return self._verdict(told, told["state"])
            if told["state"] == "done":
                return None
            if told["place"] == _place() and start_of(told["pid"]) != told["start"]:
                return self._verdict(told, "has died")
        silence = time.monotonic() - self._heard
        if self._timeout is None or silence < self._timeout:
            return None
        causes = "its machine or the network is down, or it is stopped"
        return self._verdict(
            self._last, f"has been silent for {silence:.0f} seconds (--rank_timeout): {causes}"
        )

    def _verdict(self, told: dict[str, Any], what: str) -> str:
        """rank 3 (host node1, pid 4711, last heard of in step 17) has died, which rank 2 noticed in step 18; ..."""
        who = f"rank {told['rank']}"
        if "pid" in told:
            who += f" (host {told['host']}, pid {told['pid']}, last heard of {told['where']})"
        return f"{who} {what}, which rank {self._rank} noticed {self.where()}; {ADVICE}. {self._cure}"

    def _read(self, rank: int) -> dict[str, Any]:
        assert self._store is not None
        return json.loads(self._store.get(str(rank)))

    def _about_loader(self, found: re.Match[str]) -> str:
        return (
            f"a process that loads data (pid {found[1]}) of rank {self._rank} on host {socket.gethostname()} was "
            f"lost {self.where()}: {found[2].strip()}. The kernel kills one when memory runs out (`dmesg` tells): "
            f"give fewer --workers, or more memory, in containers also to /dev/shm. {self._cure}"
        )


def _is_about_connection(error: BaseException) -> bool:
    """Whether an error may be what the loss of another process looks like here."""
    if isinstance(error, UserError):
        return False
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError | OSError) and bool(CONNECTION.search(str(error)))
    )


def _text_of(error: BaseException) -> str:
    return one_line(error) if isinstance(error, Exception) else str(error)


def _place() -> str:
    """Where the numbers of processes mean the same: a machine, or a container."""
    try:
        return f"{socket.gethostname()}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return f"{socket.gethostname()}/{os.getpid()}"  # not known: nobody else's
