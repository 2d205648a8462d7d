"""Commands on two processes of this machine, forked from a server that has imported the stack once for all tests."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.commands import REPOSITORY, run

TIMEOUT = 240.0  # seconds
PRELOADED = ["train_ds", "deepspeed"]


def run_in_two(commands: Sequence[Sequence[object]], folder: Path) -> str:
    """Runs commands in `folder`, one after the other in the same two processes, started as torchrun or srun do.

    All must succeed. Returns what the first process printed.
    """
    words = [[str(word) for word in command] for command in commands]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(PRELOADED)
    with tempfile.TemporaryDirectory() as logs, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(REPOSITORY))  # of the server, which starts with the first process
        patch.setenv("OMP_NUM_THREADS", "1")
        processes = []
        for rank in range(2):
            environment = common | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            arguments = (words, folder, environment, Path(logs) / f"rank_{rank}.log")
            processes.append(server.Process(target=_run_all, args=arguments))
            processes[-1].start()
        try:
            for process in processes:
                process.join(TIMEOUT)
        finally:
            for process in processes:
                process.kill()
        printed = [(Path(logs) / f"rank_{rank}.log").read_text() for rank in range(2)]
    for process, text in zip(processes, printed, strict=True):
        assert process.exitcode == 0, text[-4000:]
    return printed[0]


def _run_all(commands: Sequence[Sequence[str]], folder: Path, environment: dict[str, str], log: Path) -> None:
    """What each of the two processes does; it prints into `log`."""
    with log.open("w") as output:
        for descriptor in (1, 2):
            os.dup2(output.fileno(), descriptor)
    os.chdir(folder)
    os.environ.update(environment)

    import torch

    linear = torch.nn.functional.linear
    for script, *arguments in commands:
        code = run(script, *arguments)
        torch.nn.functional.linear = linear  # ZeRO-3 replaces it for good
        if code:
            sys.exit(code)
