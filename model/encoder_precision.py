"""The frozen image encoders in bfloat16, whatever the precision of the rest of the model.

The encoders take most of the time of a step on a CPU. CPUs with matrix units (AMX) or bfloat16 dot products run them
two to four times as fast in bfloat16. Their weights are cast once; hooks cast what goes in and what comes out, so the
rest of the model computes as before, with features that are off by about 1 %.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from transformers import PreTrainedModel

from model.buffers import keep_dtype
from model.choices import AS_THE_MODEL, BF16, ENCODER_PRECISIONS
from model.errors import UserError


def set_encoder_precision(model: PreTrainedModel, name: str) -> None:
    """Casts the image encoders of a LaSagnA model, on its device; "" leaves them as they are.

    Raises:
        UserError: the device has no fast bfloat16.
    """
    if name == AS_THE_MODEL:
        return
    if name not in ENCODER_PRECISIONS:
        raise UserError(f"unknown --encoder_precision {name!r}; known: {BF16}")
    reads = model.seg_projector[0].weight
    check_device(reads.device)
    for encoder in encoders_of(model):
        cast_encoder(encoder, torch.bfloat16, reads.dtype)


def encoders_of(model: PreTrainedModel) -> Iterator[nn.Module]:
    """The mask decoder's image encoder and the backbone's vision tower."""
    yield model.sam.frozen_encoder
    yield model.backbone.vision_tower


def check_frozen(model: PreTrainedModel) -> None:
    """UserError if an encoder that is cast trains: small steps would be lost in bfloat16."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for encoder in encoders_of(model):
        for parameter in encoder.parameters():
            if parameter.requires_grad:
                raise UserError(
                    f"--encoder_precision is for frozen encoders, and {names[id(parameter)]} trains; leave it out"
                )


def check_device(device: torch.device) -> None:
    """UserError unless the device multiplies matrices of bfloat16 by instructions of its own."""
    if device.type == "cuda":
        if not torch.cuda.is_bf16_supported(including_emulation=False):
            raise UserError(
                f"--encoder_precision {BF16} needs a GPU with bfloat16, which {torch.cuda.get_device_name(device)} "
                "does not have; leave it out"
            )
    elif device.type == "cpu" and not cpu_has_bf16():
        raise UserError(
            f"--encoder_precision {BF16} needs a CPU with AMX or avx512_bf16, which this one does not have: it would "
            "be slower; leave it out"
        )


def cpu_has_bf16() -> bool:
    """Whether this CPU has instructions for bfloat16 products that PyTorch uses."""
    if platform.machine().lower() in ("x86_64", "amd64"):
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


def cast_encoder(encoder: nn.Module, dtype: torch.dtype, result: torch.dtype) -> None:
    """Casts the weights of an encoder, and lets it take any floating-point input and return `result`.

    The weights stay in `dtype` when the model is cast. Buffers are not cast, as in `model.buffers`.
    """
    for parameter in encoder.parameters():
        parameter.data = parameter.data.to(dtype)
    keep_dtype(encoder)
    if dtype != result:
        encoder.register_forward_pre_hook(partial(_cast_inputs, dtype), with_kwargs=True)
        encoder.register_forward_hook(partial(_cast_outputs, result))


def _cast_inputs(dtype: torch.dtype, module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
    return _floating_to(dtype, args), _floating_to(dtype, kwargs)


def _cast_outputs(dtype: torch.dtype, module: nn.Module, args: Any, outputs: Any) -> Any:
    return _floating_to(dtype, outputs)


def _floating_to(dtype: torch.dtype, values: Any) -> Any:
    """The same values, all floating-point tensors among them in `dtype`."""
    return tree_map(
        lambda value: value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value,
        values,
    )
