"""Confidence intervals: how much the numbers would vary with other images of the same kind.

The percentile bootstrap (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13). Images are
resampled with replacement, not answers, because answers about one image are not independent; every metric is
recomputed from the sums of the images drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import numpy as np

NUM_RESAMPLES = 1000
CONFIDENCE = 0.95
LOW, HIGH = "_low", "_high"  # suffixes of the names of the bounds
CHUNK = 100  # resamples at a time, to bound the memory
_UNIT = 1 << 30

Measures: TypeAlias = dict[str, np.ndarray]


def whole(value: float) -> float:
    """A fraction in fixed point with 30 bits, as a whole number: sums of these are exact in float64.

    So a matrix product gives the same bits whatever the number of threads or processes.
    """
    return float(round(value * _UNIT))


def intervals(
    sums: np.ndarray, measure: Callable[[np.ndarray], Mapping[str, np.ndarray]], *, seed: int = 0
) -> dict[str, float]:
    """95 % confidence intervals of metrics that are functions of sums over images.

    Args:
        sums: (num_images, ...) what each image adds, whole numbers whose total is below 2**53.
        measure: (n, ...) sums -> metrics by name, each (n,).
        seed: of the resampling.

    Returns:
        NAME_low and NAME_high for each name; NaN with fewer than two images, or if the metric is always NaN.
    """
    num_images = len(sums)
    if num_images < 2:
        names = measure(np.zeros((1, *sums.shape[1:])))
        return {name + end: float("nan") for name in names for end in (LOW, HIGH)}
    flat = np.asarray(sums, dtype=np.float64).reshape(num_images, -1)
    rng = np.random.default_rng(seed)
    parts: list[Mapping[str, np.ndarray]] = []
    for start in range(0, NUM_RESAMPLES, CHUNK):
        count = min(CHUNK, NUM_RESAMPLES - start)
        drawn = rng.integers(num_images, size=(count, num_images))
        drawn += np.arange(count)[:, None] * num_images
        weights = np.bincount(drawn.ravel(), minlength=count * num_images).reshape(count, num_images)
        parts.append(measure((weights.astype(np.float64) @ flat).reshape(count, *sums.shape[1:])))
    bounds = {}
    for name in parts[0]:
        values = np.concatenate([part[name] for part in parts])
        low, high = _quantiles(values[np.isfinite(values)])
        bounds[name + LOW], bounds[name + HIGH] = low, high
    return bounds


def _quantiles(values: np.ndarray) -> tuple[float, float]:
    if not len(values):
        return float("nan"), float("nan")
    low, high = np.quantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)
