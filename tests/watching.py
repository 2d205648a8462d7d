"""Recorders: the forward passes of a language model, the largest tensor that an operation returns."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@contextmanager
def passes_of(language_model: nn.Module) -> Iterator[list[tuple[int, int]]]:
    """(rows, tokens) of each of its passes, as it goes."""
    passes: list[tuple[int, int]] = []
    hook = language_model.register_forward_pre_hook(
        lambda _, args, kwargs: passes.append(tuple(kwargs["inputs_embeds"].shape[:2])), with_kwargs=True
    )
    yield passes
    hook.remove()


class Largest(TorchDispatchMode):
    """Entries of the largest tensor that any operation returned, counted with all of its memory.

    dtype: other tensors do not count; None: all do.
    """

    def __init__(self, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.dtype = dtype
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and self.dtype in (None, leaf.dtype):
                in_memory = leaf.untyped_storage().nbytes() // leaf.element_size()
                self.numel = max(self.numel, leaf.numel(), in_memory)
        return result
