"""Whether tests can compute with fake tensors on a GPU that is not there: shapes, dtypes and devices, no values."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode


def computes_without_gpu() -> bool:
    """Whether this torch takes fake tensors on a GPU through a convolution; 2.6 asks the driver about it."""
    half = torch.bfloat16
    try:
        with FakeTensorMode(), torch.device("cuda"):
            torch.nn.functional.conv2d(
                torch.empty(1, 3, 8, 8, dtype=half), torch.empty(4, 3, 2, 2, dtype=half)
            )
    except RuntimeError:
        return False
    return True


needs_fake_gpu = pytest.mark.skipif(
    not computes_without_gpu(), reason="this torch needs a GPU to compute with fake tensors on one"
)
