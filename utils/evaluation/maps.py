"""Similarity maps of a spatial prompt as files (`--save_maps`), one for each [SEG]."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from model.errors import UserError
from model.files import read_json
from model.outputs import SimilarityMaps
from utils.common.files import write_png
from utils.reports.heat_map import heat_map


def check_maps(folder: str) -> None:
    """UserError for a model folder without a spatial prompt, before its weights are read.

    Other layouts say it when they are loaded: `check_has_maps`.
    """
    stored = read_json(Path(folder) / "config.json")
    if stored.get("model_type") == "lasagna" and not stored.get("spatial_prompt"):
        raise UserError(_without(folder))


def check_has_maps(model: object, folder: str) -> None:
    """UserError for a loaded model without a spatial prompt."""
    if getattr(model, "spatial_prompt", None) is None:
        raise UserError(_without(folder))


def _without(folder: str) -> str:
    return f"--save_maps needs a model that was trained with --spatial_prompt, and {folder} was not; leave it out"


def write_heat_maps(image: np.ndarray, maps: SimilarityMaps, paths: Sequence[Path]) -> None:
    """Write each map over the image, (height, width, 3) uint8."""
    values = maps.probabilities(image.shape[:2]).cpu().numpy()  # (num_masks, height, width)
    for path, value in zip(paths, values, strict=True):
        write_png(path, heat_map(image, value))
