"""Processes and devices: the same script on a CPU, one GPU, many GPUs and many nodes."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.distributed as dist

from model.checkpoints.layouts.base import DTYPES
from model.errors import UserError


def dtype_of(precision: str) -> torch.dtype:
    """The torch dtype of fp32, bf16 or fp16."""
    if precision not in DTYPES:
        raise ValueError(f"unknown precision {precision!r}; known: {', '.join(DTYPES)}")
    return DTYPES[precision]


def dtype_unless_stored(precision: str) -> torch.dtype | None:
    """As `dtype_of`; None for "auto", which keeps the number format that is stored."""
    return None if precision == "auto" else dtype_of(precision)


def device_of() -> torch.device:
    """This process's device: its own GPU where there are any, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def set_launch_environment() -> None:
    """Give a script that was started with plain `python` what a launcher would have set: one process of one."""
    if "RANK" in os.environ:
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ.update(
        RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )


def seed_of_step(seed: int, step: int) -> int:
    """A seed for what is drawn on this process in one optimizer step, such as dropout.

    It depends on nothing that happened before, so that a resumed run draws what the run would have drawn.
    """
    rank = dist.get_rank() if dist.is_initialized() else 0
    return int(np.random.SeedSequence((seed, step, rank)).generate_state(1)[0])


def is_main_process() -> bool:
    return not dist.is_initialized() or dist.get_rank() == 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


@contextmanager
def meeting() -> Iterator[None]:
    """What hinders the processes from meeting in the block is a UserError: mostly a port that is in use."""
    try:
        yield
    except dist.DistNetworkError as problem:
        place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        if "EADDRINUSE" in str(problem) or "address already in use" in str(problem).lower():
            raise UserError(
                f"port {os.environ.get('MASTER_PORT')} is in use, perhaps by another run; choose another one: "
                "deepspeed --master_port=PORT"
            ) from None
        raise UserError(
            f"the processes cannot meet at {place}: {str(problem).strip().split(chr(10))[0]}"
        ) from None


@contextmanager
def distributed() -> Iterator[int]:
    """Join the process group that a launcher set up, if there is one; yields this process's rank.

    With NCCL on GPUs, gloo on CPUs. The group is left in the end, unless it existed before.
    """
    joins = int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized()
    if torch.cuda.is_available():
        torch.cuda.set_device(device_of())
    if joins:
        with meeting():
            dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield dist.get_rank() if dist.is_initialized() else 0
    finally:
        if joins:
            dist.destroy_process_group()
