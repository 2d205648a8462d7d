"""Divisions and means that tell "nothing measured" (NaN) from a bad result (0)."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt


def ratio(part: float, whole: float) -> float:
    """part / whole, NaN when whole is 0."""
    return float(part) / float(whole) if whole else math.nan


def safe_divide(part: npt.ArrayLike, whole: npt.ArrayLike) -> np.ndarray:
    """part / whole, float64, NaN where whole is 0; shapes broadcast."""
    above, below = np.broadcast_arrays(part, whole)
    return np.divide(above, below, out=np.full(above.shape, np.nan), where=below > 0)


def known_mean(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis, NaNs left out; NaN where all are."""
    known = np.isfinite(values)
    return safe_divide(np.where(known, values, 0.0).sum(axis=-1), known.sum(axis=-1))
