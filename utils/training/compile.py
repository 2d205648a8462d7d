"""torch.compile for the blocks that a training step spends its time in.

The blocks of a stack are identical, so each kind is compiled once, in seconds to minutes. The model as a whole, with
its lists of images and masks, is not compiled.
"""

from __future__ import annotations

import importlib.util
import os
import shutil

import torch
from torch import nn

from model.errors import UserError
from model.lasagna import LasagnaForConditionalGeneration


def check_compiler() -> None:
    """Check that torch.compile can work here: Triton on a GPU, a C++ compiler on a CPU.

    Raises:
        ValueError: what it needs is missing.
    """
    if torch.cuda.is_available():
        if importlib.util.find_spec("triton") is None:
            raise UserError("--compile needs Triton on a GPU; pip install triton, or leave --compile out")
        return
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise UserError(
            f"--compile needs a C++ compiler on a CPU and {compiler} is not there; install it, name another one in "
            "CXX, or leave --compile out"
        )


def compiled_blocks(model: LasagnaForConditionalGeneration) -> list[nn.Module]:
    """The layers of the language model, the blocks of the mask decoder's image encoder, and its decoding part.

    Not CLIP's layers: so few kernels run in each that a compiled call costs the host more than it saves the GPU.
    """
    return [*model.backbone.language_model.layers, *model.sam.encoder_blocks, model.sam.mask_decoder]


def compile_blocks(model: LasagnaForConditionalGeneration, backend: str = "inductor") -> None:
    """Compile the blocks when they first run; weights keep their names.

    Rows differ in length from batch to batch: the second length is compiled for all lengths.
    """
    # Dropout draws the same numbers as in eager mode; the compiler's own random numbers fail in torch 2.11 where a
    # layer is checkpointed and compiled for all lengths.
    torch._inductor.config.fallback_random = True
    for block in compiled_blocks(model):
        block.compile(backend=backend)


def undo_compilation(model: LasagnaForConditionalGeneration) -> None:
    """Run the blocks in eager mode again."""
    for block in compiled_blocks(model):
        block._compiled_call_impl = None
