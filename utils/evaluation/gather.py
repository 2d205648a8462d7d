"""What the processes of an evaluation exchange. Without a process group there is one process, and nothing is sent."""

from __future__ import annotations

from typing import TypeVar

import torch.distributed as dist

from model.errors import UserError
from utils.common.commands import one_line

T = TypeVar("T")


def rank_and_world_size() -> tuple[int, int]:
    """This process's rank, and the number of processes."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def wait_for_all() -> None:
    """Return when every process has called this."""
    if rank_and_world_size()[1] > 1:
        dist.barrier()


def raise_everywhere(failure: Exception | None) -> None:
    """Raise on every process what failed on one of them. A collective call; None: nothing failed here.

    Raises:
        UserError: the user's mistake of another process, or a file that it could not read or write.
        RuntimeError: any other failure of another process.
    """
    _, world_size = rank_and_world_size()
    failures: list[tuple[bool, str] | None] = [None] * world_size
    if world_size > 1:
        is_mistake = isinstance(failure, UserError | OSError)  # a disk that is full as well
        mine = failure and (is_mistake, (one_line(failure) if is_mistake else str(failure)) or repr(failure))
        dist.all_gather_object(failures, mine)
    if failure is not None:
        raise failure
    for other, told in enumerate(failures):
        if told is not None:
            is_mistake, message = told
            raise UserError(message) if is_mistake else RuntimeError(f"process {other}: {message}")


def gather(mine: dict[int, T], *, may_repeat: bool = False) -> dict[int, T]:
    """The samples of all processes by index, on every process. A collective call.

    Objects, not tensors: a record holds arrays of different lengths, and the bootstrap needs each image's own.

    Args:
        may_repeat: several processes may hold the same sample, as after reading the same files.
    """
    _, world_size = rank_and_world_size()
    if world_size == 1:
        return mine
    shares: list[dict[int, T]] = [{} for _ in range(world_size)]
    dist.all_gather_object(shares, mine)
    everything: dict[int, T] = {}
    for share in shares:
        assert may_repeat or not everything.keys() & share.keys(), "a sample was predicted by two processes"
        everything.update(share)
    return everything
