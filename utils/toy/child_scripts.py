"""Scripts that threads of this process start, and that end with it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import IO

from utils.common.processes import without_launcher


class ChildScripts:
    """Python scripts in processes of their own, each with one thread; after `stop` no other one is started."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._stopped = False

    def run(self, words: Sequence[str], log: IO[str]) -> bool:
        """Runs a script with its arguments until it ends; whether it ended well. Its output goes to `log`."""
        with self._lock:
            if self._stopped:
                return False
            child = subprocess.Popen(
                [sys.executable, *words],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=without_launcher(os.environ) | {"OMP_NUM_THREADS": "1"},
                start_new_session=True,  # Ctrl-C reaches it by `stop` alone: a second signal would not let it save
            )
            self._running.add(child)
        try:
            return child.wait() == 0
        finally:
            with self._lock:
                self._running.discard(child)

    def stop(self) -> None:
        """Sends SIGTERM to all that run: a training saves, and its `run` returns."""
        with self._lock:
            self._stopped = True
            for child in self._running:
                child.terminate()
