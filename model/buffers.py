"""Buffers, and weights of some parts, that keep their dtype when a model is cast."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

_KEEPS_DTYPE = "_keeps_dtype"


def keep_dtype(part: nn.Module) -> None:
    """Marks a part of an `ExactBuffers` whose weights are not to be cast with the rest."""
    for module in part.modules():
        setattr(module, _KEEPS_DTYPE, True)


class ExactBuffers(nn.Module):
    """A module whose buffers move to another device with it, but are never cast to another dtype.

    `model.bfloat16()`, which DeepSpeed calls, would round rotary frequencies and SAM's positional encoding matrix.
    The rotary angle of token 600 would be off by up to a radian in training, but not after the saved model is loaded.
    Weights of a part that `keep_dtype` marked are not cast either; DeepSpeed calls `model.float()` too.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ExactBuffers:
        before = [
            (module, name, value)
            for module in self.modules()
            for name, value in module._buffers.items()
            if value is not None
        ]
        weights = [
            (parameter, parameter.data)
            for module in self.modules()
            if getattr(module, _KEEPS_DTYPE, False)
            for parameter in module._parameters.values()
            if parameter is not None
        ]
        super()._apply(fn, recurse)
        for parameter, weight in weights:
            if parameter.dtype != weight.dtype:
                parameter.data = weight.to(parameter.device)
        for module, name, value in before:
            if module._buffers[name].dtype != value.dtype:
                module._buffers[name] = value.to(module._buffers[name].device)
        return self
