"""Processes and devices: the same script on a CPU, one GPU, many GPUs and many nodes."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist

from model.checkpoints.layouts.base import DTYPES
from model.errors import UserError
from utils.common.peers import Peers
from utils.common.rendezvous import meet

T = TypeVar("T")


def dtype_of(precision: str) -> torch.dtype:
    """The torch dtype of fp32, bf16 or fp16."""
    if precision not in DTYPES:
        raise ValueError(f"unknown precision {precision!r}; known: {', '.join(DTYPES)}")
    return DTYPES[precision]


def dtype_unless_stored(precision: str) -> torch.dtype | None:
    """As `dtype_of`; None for "auto", which keeps the stored dtype."""
    return None if precision == "auto" else dtype_of(precision)


def device_of() -> torch.device:
    """This process's device: its own GPU where there are any, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def set_launch_environment() -> None:
    """Set what a launcher would have set for a script started with plain `python`: the only process."""
    if "RANK" in os.environ:
        return
    os.environ.update(
        RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port())
    )


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def seed_of_micro_batch(seed: int, step: int, number: int) -> int:
    """The seed of the random numbers, such as dropout, in micro-batch `number` of this process in an optimizer step.

    It depends on nothing that happened before, so a resumed run draws the same numbers; and a micro-batch draws the
    same in whichever process it is:
        one process     micro-batches 0 1 2 3
        two processes   0 2 and 1 3
    """
    place = number * world_size() + process_rank()
    return int(np.random.SeedSequence((seed, step, place)).generate_state(1)[0])


def process_rank() -> int:
    """The number of this process among all."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_main_process() -> bool:
    """Whether this is the main process, which writes and prints for all."""
    return process_rank() == 0


def world_size() -> int:
    """The number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def sum_over_processes(numbers: Sequence[float]) -> list[float]:
    """Each number summed over all processes, in float64: whole numbers are exact up to 2^53.

    A collective call, a single all_reduce: every process passes as many numbers, in the same order.
    """
    if world_size() == 1:
        return [float(number) for number in numbers]
    device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else "cpu"
    sums = torch.tensor(numbers, dtype=torch.float64, device=device)
    dist.all_reduce(sums)
    return sums.tolist()


def gather_objects(mine: T) -> list[T]:
    """The values of all processes, in the order of ranks. A collective call; numbers go through an all_reduce."""
    everyone = [mine] * world_size()
    if world_size() > 1:
        dist.all_gather_object(everyone, mine)
    return everyone


@contextmanager
def rendezvous() -> Iterator[None]:
    """Turn a failed rendezvous inside the block into a UserError: mostly a port that is in use."""
    try:
        yield
    except RuntimeError as problem:
        is_in_use = "EADDRINUSE" in str(problem) or "address already in use" in str(problem).lower()
        if not (is_in_use or isinstance(problem, dist.DistNetworkError)):  # torch 2.6: a plain RuntimeError
            raise
        place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        if is_in_use:
            raise UserError(
                f"port {os.environ.get('MASTER_PORT')} is in use, perhaps by another run; choose another one: "
                "deepspeed --master_port=PORT"
            ) from None
        raise UserError(
            f"the processes cannot meet at {place}: {str(problem).strip().split(chr(10))[0]}"
        ) from None


@contextmanager
def distributed(rank_timeout: float | None, *, command: str, cure: str) -> Iterator[int]:
    """Join the process group that a launcher set up, if there is one; yields this process's rank.

    With NCCL on GPUs, gloo on CPUs. The group is destroyed at the end, unless it existed before.

    Args:
        rank_timeout: seconds to wait for a process that does not come, or falls silent; None: forever.
        command, cure: what the message about a lost process begins and ends with (`Peers`).
    """
    joins = int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized()
    if torch.cuda.is_available():
        torch.cuda.set_device(device_of())
    store = None
    if joins:
        with rendezvous():
            store = meet(rank_timeout)
            dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        with Peers(store, rank_timeout, command=command, cure=cure):
            yield process_rank()
    finally:
        if joins:
            dist.destroy_process_group()
