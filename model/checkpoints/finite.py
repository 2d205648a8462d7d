"""Weights that are not finite are refused, by name: one NaN makes all answers nonsense, and nothing else tells."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from model.errors import UserError
from model.strict_loading import NAMES_SHOWN


def require_finite(weights: Mapping[str, Tensor], *, source: str) -> None:
    """UserError naming the weights that hold a NaN or an infinity.

    Args:
        source: the file or folder they are from, or the number format that they were cast to.
    """
    wrong = [
        name
        for name, value in weights.items()
        if value.is_floating_point() and not bool(torch.isfinite(value).all())
    ]
    if wrong:
        more = f" and {len(wrong) - NAMES_SHOWN} more" if len(wrong) > NAMES_SHOWN else ""
        raise UserError(
            f"{source}: not finite (NaN or infinite): {', '.join(wrong[:NAMES_SHOWN])}{more}; take an older save of "
            "the run (--weight FOLDER --tag global_stepN, or ckpt_best), or download the file again"
        )
