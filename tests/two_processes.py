"""Two processes of this machine, forked from a server that has imported the stack once for all tests."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.commands import REPOSITORY, run

TIMEOUT = 240.0  # seconds
PRELOADED = ["train_ds", "deepspeed"]


@dataclass(frozen=True)
class Ended:
    """How one of the processes ended."""

    code: int
    printed: str  # on both streams


def fork_two(target: Callable[..., None], *arguments: object) -> list[Ended]:
    """Runs `target(rank, *arguments)`, a function of a module, in two processes, whose ranks are 0 and 1."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(PRELOADED)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(REPOSITORY))  # of the server, which starts with the first process
        patch.setenv("OMP_NUM_THREADS", "1")
        logs = [Path(folder) / f"rank_{rank}.log" for rank in range(2)]
        processes = [
            server.Process(target=_print_into, args=(log, target, rank, *arguments))
            for rank, log in enumerate(logs)
        ]
        for process in processes:
            process.start()
        try:
            for process in processes:
                process.join(TIMEOUT)
        finally:
            for process in processes:
                process.kill()
                process.join()
        return [
            Ended(process.exitcode, log.read_text()) for process, log in zip(processes, logs, strict=True)
        ]


def run_in_two(commands: Sequence[Sequence[object]], folder: Path) -> str:
    """Runs commands in `folder`, one after the other in the same two processes, started as torchrun or srun do.

    All must succeed. Returns what the first process printed.
    """
    words = [[str(word) for word in command] for command in commands]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ended = fork_two(_run_all, words, folder, port)
    for one in ended:
        assert one.code == 0, one.printed[-4000:]
    return ended[0].printed


def _print_into(log: Path, target: Callable[..., None], *arguments: object) -> None:
    with log.open("w") as output:
        for descriptor in (1, 2):
            os.dup2(output.fileno(), descriptor)
    target(*arguments)


def _run_all(rank: int, commands: Sequence[Sequence[str]], folder: Path, port: int) -> None:
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    os.chdir(folder)

    import torch

    linear = torch.nn.functional.linear
    for script, *arguments in commands:
        code = run(script, *arguments)
        torch.nn.functional.linear = linear  # ZeRO-3 replaces it for good
        if code:
            sys.exit(code)
