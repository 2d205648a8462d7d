"""Memory of a process that runs for days."""

from __future__ import annotations

import ctypes
from contextlib import suppress


def give_back_memory() -> None:
    """Return what was freed to the system, where the C library can; else it counts as used until the process ends.

    Tensors of ever other sizes leave holes between them that glibc keeps.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
