"""The processes of a launcher meet: who does not come is named."""

from __future__ import annotations

import os
import socket
import time
from datetime import timedelta

import torch.distributed as dist

from model.errors import UserError

FOREVER = timedelta(days=1)
_meetings = 0  # of this process: each has keys of its own


class AbsentError(UserError):
    """A process did not come."""

    exit_code = 4
    for_everybody = True


def meet(seconds: float | None) -> dist.Store | None:
    """Wait until every process that the launcher announced is there; returns what they share, None for a single one.

    The store is on the launcher's port, as the process group's will be.

    Raises:
        AbsentError: somebody did not come within `seconds`; None waits on.
        DistNetworkError: the port cannot be used.
    """
    global _meetings
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return None
    _meetings += 1
    limit = FOREVER if seconds is None else timedelta(seconds=seconds)
    deadline = time.monotonic() + limit.total_seconds()
    store = dist.PrefixStore(f"lasagna/{_meetings}/{_attempt()}", _open_store(rank, size, limit))
    store.set(f"here/{rank}", f"rank {rank} (host {socket.gethostname()}, pid {os.getpid()})")
    keys = [f"here/{other}" for other in range(size)]
    while missing := [other for other, key in enumerate(keys) if not store.check([key])]:
        if time.monotonic() > deadline:
            here = ", ".join(
                store.get(key).decode() for other, key in enumerate(keys) if other not in missing
            )
            raise AbsentError(
                f"{_ranks(missing)} of {size} did not come within {seconds:g} seconds, --rank_timeout; here: {here}. "
                "Look at the output of the missing ones and whether their hosts run and know the same MASTER_ADDR, "
                "MASTER_PORT and WORLD_SIZE; where starting takes longer, raise --rank_timeout"
            )
        time.sleep(0.1)
    return store


def _open_store(rank: int, size: int, limit: timedelta) -> dist.Store:
    address, port = os.environ.get("MASTER_ADDR", "127.0.0.1"), int(os.environ.get("MASTER_PORT", "29500"))
    hosts = (
        rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    )  # torchrun has a store there
    if not hosts and (reason := _unreachable(address, port, limit.total_seconds())):
        raise AbsentError(
            f"rank {rank} of {size} (host {socket.gethostname()}, pid {os.getpid()}) does not reach the "
            f"first process at {address}:{port} within {limit.total_seconds():g} seconds, --rank_timeout "
            f"({reason}). Look at the output of rank 0, whether MASTER_ADDR is its host, and whether a firewall "
            "closes the port; where starting takes longer, raise --rank_timeout"
        )
    return dist.TCPStore(
        address, port, size, is_master=hosts, timeout=limit, wait_for_workers=False, multi_tenant=True
    )


def _unreachable(address: str, port: int, seconds: float) -> str:
    """Why nobody listens there within so many seconds, "" as soon as somebody does; the store tries twice as long."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            with socket.create_connection((address, port), timeout=max(0.1, deadline - time.monotonic())):
                return ""
        except OSError as problem:
            if time.monotonic() + 0.2 > deadline:
                return problem.strerror or str(problem)
        time.sleep(0.2)


def _attempt() -> str:
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")


def _ranks(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[:10])) + (
        f" and {len(numbers) - 10} more" if len(numbers) > 10 else ""
    )
    return f"rank {shown}" if len(numbers) == 1 else f"ranks {shown}"
