"""A whole model beside one whose parameters ZeRO-3 has divided among the processes.

Answers of different processes differ in length, and under ZeRO-3 every forward pass is a collective: a process that
went on alone would wait for the others without end. So validation runs on a copy that holds all parameters.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import deepspeed
import torch
from torch import nn

from model.lasagna import LasagnaForConditionalGeneration


class WholeModel:
    """Made before ZeRO-3 divides the model; takes memory only while it is filled.

    Args:
        model: the model as it is built, with adapters; it is not changed, and its processor is shared.
    """

    def __init__(self, model: LasagnaForConditionalGeneration) -> None:
        shared: dict[int, Any] = {id(model.processor): model.processor}
        for parameter in model.parameters():
            empty = torch.empty_like(parameter, device="meta")
            shared[id(parameter)] = nn.Parameter(empty, requires_grad=False)
        self._empty = deepcopy(model, shared)

    @contextmanager
    def filled_from(
        self, divided: LasagnaForConditionalGeneration
    ) -> Iterator[LasagnaForConditionalGeneration]:
        """A copy of the divided model, in evaluation mode, on its device; a collective operation at its beginning.

        One parameter after the other is gathered, so that at most one is held twice.
        """
        model = deepcopy(self._empty, {id(self._empty.processor): self._empty.processor})
        gathered: dict[str, torch.Tensor] = {}
        whole_of: dict[int, torch.Tensor] = {}  # tied parameters stay one
        for name, parameter in divided.named_parameters(remove_duplicate=False):
            if id(parameter) not in whole_of:
                with deepspeed.zero.GatheredParameters(parameter):
                    whole_of[id(parameter)] = parameter.detach().clone()
            gathered[name] = whole_of[id(parameter)]
        buffers = dict(divided.named_buffers(remove_duplicate=False))
        for name, module in model.named_modules():
            for kind, found in (("_parameters", gathered), ("_buffers", buffers)):
                for leaf, value in getattr(module, kind).items():
                    if value is not None:
                        whole = found[f"{name}.{leaf}" if name else leaf].detach()
                        getattr(module, kind)[leaf] = (
                            nn.Parameter(whole, requires_grad=False)
                            if kind == "_parameters"
                            else whole.clone()
                        )
        yield model.eval()
