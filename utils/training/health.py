"""Non-finite losses and gradients: they never reach the weights, are counted and logged, and stop a diverged run.

A loss that is not finite makes every gradient of its micro-batch NaN (`Watch.see`); reducing the gradients brings
that to all processes, and the optimizer of each skips the step, as DeepSpeed's do for a gradient that is not finite
itself. So one decision covers both, it is the same everywhere, and nothing waits for the GPU inside a micro-batch.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from model.errors import UserError
from utils.common.distributed import gather_objects
from utils.data.types import Batch
from utils.training.engine import Engine
from utils.training.progress import BadSteps

logger = logging.getLogger(__name__)

MAX_NAMED = 20  # samples or weights that a message names


class DivergedError(UserError):
    """The run has diverged: its losses, gradients or weights are not finite."""

    exit_code = 3


class Watch:
    """Watches the losses and gradients of one optimizer step at a time."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._seen: list[
            tuple[tuple[str, ...], Tensor]
        ] = []  # the samples of a micro-batch, () bool on the device
        # A plain torch optimizer (ZeRO-0 in float32) applies any gradient. DeepSpeed asks every optimizer for this.
        self._norm: Tensor | None = None  # of the gradients, of a plain optimizer
        self._is_plain = isinstance(engine.optimizer, torch.optim.Optimizer)
        if self._is_plain:
            engine.optimizer.overflow = False
            engine.optimizer.step = _unless_overflow(engine.optimizer)

    def see(self, batch: Batch, loss: Tensor) -> Tensor:
        """The loss to take the gradient of: `loss` times 1, or times NaN if it is not finite."""
        is_finite = torch.isfinite(loss.detach())
        self._seen.append((batch.sources, is_finite))
        return loss * torch.where(is_finite, 1.0, torch.nan).to(loss.dtype)

    def before_step(self) -> None:
        """Between the last backward and the step that changes the weights: what a plain optimizer does not check."""
        if not self._is_plain:
            return
        gradients = [p.grad for p in self._engine.module.parameters() if p.grad is not None]
        self._norm = torch.nn.utils.get_total_norm(gradients)
        self._engine.optimizer.overflow = not bool(torch.isfinite(self._norm))

    def grad_norm(self) -> float | None:
        """The norm of all gradients of the step, before they were clipped; None where the optimizer has none."""
        norm = self._norm if self._is_plain else self._engine.get_global_grad_norm()
        return None if norm is None else float(norm)

    def after_step(self, step: int, bad: BadSteps, max_bad_steps: int | None) -> bool:
        """Count whether the step was applied, the same on every process; a collective call if it was not.

        Raises:
            DivergedError: it is the last of `max_bad_steps` in a row; None: any number is allowed.
        """
        seen, self._seen = self._seen, []
        applied = self._engine.was_step_applied()
        bad.note(applied)
        if applied:
            return True
        what, names = _culprits(seen)
        logger.warning(
            "step %d: the %s not finite; the step is skipped (%d in a row, %d in all). Samples: %s",
            step, "loss is" if what == "loss" else "gradient is", bad.in_row, bad.total, shown(names),
        )  # fmt: skip
        if max_bad_steps is not None and bad.in_row >= max_bad_steps:
            raise DivergedError(
                f"step {step}: {bad.in_row} steps in a row had a loss or gradient that is not finite "
                "(--max_bad_steps); the weights of the last save are good. Start again from it with a lower --lr "
                "(another --exp_name, with the merged model as --version), or mend the samples named above"
            )
        return False


def _unless_overflow(optimizer: torch.optim.Optimizer) -> Callable[..., object]:
    """The `step` of an optimizer, which does nothing when its `overflow` is set."""
    step = optimizer.step

    def step_or_not(*arguments: object, **named: object) -> object:
        return None if optimizer.overflow else step(*arguments, **named)

    return step_or_not


def _culprits(seen: Sequence[tuple[tuple[str, ...], Tensor]]) -> tuple[str, list[str]]:
    """("loss" or "gradient", the samples of all processes that are concerned). A collective call."""
    by_loss = [name for sources, is_finite in seen if not is_finite for name in sources]
    mine = (by_loss, [name for sources, _ in seen for name in sources])
    everyone = gather_objects(mine)
    if any(of_loss for of_loss, _ in everyone):
        return "loss", [name for of_loss, _ in everyone for name in of_loss]
    return "gradient", [name for _, names in everyone for name in names]


def check_weights(engine: Engine, step: int) -> None:
    """DivergedError when a trained weight or a value of the optimizer is not finite. A collective call."""
    if wrong := not_finite(engine):
        raise DivergedError(
            f"step {step}: weights are not finite and are not saved: {shown(wrong)}; the last save is good. Lower "
            "--lr, and start again under another --exp_name"
        )


def not_finite(engine: Engine) -> list[str]:
    """Names of trained weights, and of values of the optimizer, that are not finite. A collective call."""
    with torch.no_grad():
        named = {
            # `ds_tensor` is this process's part of a parameter that ZeRO-3 has divided.
            name: torch.isfinite(getattr(parameter, "ds_tensor", parameter)).all()
            for name, parameter in engine.module.named_parameters()
            if parameter.requires_grad
        }
        inner = getattr(engine.optimizer, "optimizer", engine.optimizer)
        for state in inner.state.values():
            for name, value in state.items():
                if isinstance(value, Tensor) and value.is_floating_point():
                    key, whole = f"the optimizer's {name}", torch.isfinite(value).all()
                    named[key] = named[key] & whole.to(named[key].device) if key in named else whole
        flags = torch.stack([flag.to(engine.device) for flag in named.values()]).tolist()
    mine = [name for name, is_finite in zip(named, flags, strict=True) if not is_finite]
    return list(dict.fromkeys(name for names in gather_objects(mine) for name in names))


def shown(names: Sequence[str]) -> str:
    """The first names, and how many there are more."""
    more = len(names) - MAX_NAMED
    return ", ".join(names[:MAX_NAMED]) + (f" and {more} more" if more > 0 else "")
