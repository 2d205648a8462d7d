"""Refuses weights with NaN or infinity, by name: a single one makes every answer meaningless, without an error."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from model.errors import UserError
from model.strict_loading import NAMES_SHOWN


def require_finite(weights: Mapping[str, Tensor], *, source: str) -> None:
    """UserError naming the weights that hold a NaN or an infinity.

    Args:
        source: the file or folder that they come from, or the dtype that they were cast to.
    """
    wrong = [name for name, value in weights.items() if value.is_floating_point() and not is_finite(value)]
    if wrong:
        more = f" and {len(wrong) - NAMES_SHOWN} more" if len(wrong) > NAMES_SHOWN else ""
        raise UserError(
            f"{source}: not finite (NaN or infinite): {', '.join(wrong[:NAMES_SHOWN])}{more}; take an older save of "
            "the run (--weight FOLDER --tag global_stepN, or ckpt_best), or download the file again"
        )


def is_finite(value: Tensor) -> bool:
    """Whether no entry is NaN or infinite."""
    if value.element_size() == 1:  # float8 has no sum
        value = value.float()
    # The sum is read at the speed of memory, also of half a gigabyte; only finite entries can have a finite one.
    return bool(torch.isfinite(value.sum(dtype=torch.float32))) or bool(torch.isfinite(value).all())
