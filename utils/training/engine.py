"""Protocol of the training engine: DeepSpeed's, or a fake in tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from model.lasagna import LasagnaForConditionalGeneration
from model.outputs import LasagnaOutput

LoadModule = Callable[[dict[str, Tensor], nn.Module], None]


class CheckpointEngine(Protocol):
    """The part of an engine that reads and writes files."""

    load: Callable[..., Any]  # (path, map_location=None, ...) -> what `torch.save` wrote


class Engine(Protocol):
    """Optimizer, schedule and ZeRO around the model; the names are those of `deepspeed.DeepSpeedEngine`.

    Saving and loading are collective calls: every process makes them.
    """

    module: LasagnaForConditionalGeneration
    device: torch.device
    checkpoint_engine: CheckpointEngine
    optimizer: Any  # a torch optimizer, or DeepSpeed's around one

    def __call__(self, **inputs: Any) -> LasagnaOutput:
        """The model's forward pass over one micro-batch."""
        ...

    def train(self) -> Any:
        """Training mode, for the model too."""
        ...

    def backward(self, loss: Tensor) -> Any:
        """Add the gradients of one micro-batch's loss."""
        ...

    def step(self) -> None:
        """One micro-batch is done; after the last one of an optimizer step the weights change."""
        ...

    def was_step_applied(self) -> bool:
        """Whether the last `step` changed the weights; not when a gradient was not finite."""
        ...

    def get_global_grad_norm(self) -> Tensor | float | None:
        """The norm of all gradients of the last optimizer step, before they were clipped."""
        ...

    def gradient_accumulation_steps(self) -> int:
        """The micro-batches of this process in an optimizer step."""
        ...

    def get_lr(self) -> list[float]:
        """The learning rate of each parameter group."""
        ...

    def save_checkpoint(
        self,
        save_dir: str,
        *,
        tag: str,
        client_state: Mapping[str, Any],
        save_latest: bool,
        exclude_frozen_parameters: bool,
    ) -> Any:
        """Write weights, optimizer and `client_state` to the folder `save_dir/tag`."""
        ...

    def load_checkpoint(
        self, load_dir: str, *, tag: str, load_module_strict: bool, custom_load_fn: LoadModule | None
    ) -> tuple[str | None, dict[str, Any]]:
        """Read the save in `load_dir/tag`; returns (its path, its `client_state`), or None for a path."""
        ...
