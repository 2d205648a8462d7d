"""Commands on two processes of this machine, one after the other in the same two: starting them costs the most.

python -m tests.two_processes '[["train_ds", "--lr=1"], ...]'        # as one of them, with RANK and so on set
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.commands import REPOSITORY, run

TIMEOUT = 240.0  # seconds


def start_two(
    commands: Sequence[Sequence[object]],
    folder: Path,
    module: str = "tests.two_processes",
    num_started: int = 2,
) -> list[subprocess.Popen[str]]:
    """Starts both processes, or only the first of them, in `folder`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    text = json.dumps([[str(word) for word in command] for command in commands])
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    return [
        subprocess.Popen(
            [sys.executable, "-m", module, text],
            cwd=folder,
            env={
                **os.environ,
                **common,
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "PYTHONPATH": str(REPOSITORY),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(num_started)
    ]


def run_in_two(commands: Sequence[Sequence[object]], folder: Path) -> str:
    """Runs all commands on two processes; all must succeed. Returns what the first process printed."""
    processes = start_two(commands, folder)
    outputs = [process.communicate(timeout=TIMEOUT) for process in processes]
    for process, (_, errors) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, errors[-4000:]
    return "".join(outputs[0])


def main() -> int:
    import torch

    linear = torch.nn.functional.linear
    for script, *arguments in json.loads(sys.argv[1]):
        code = run(script, *arguments)
        torch.nn.functional.linear = linear  # ZeRO-3 replaces it for good
        if code:
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
