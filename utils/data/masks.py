"""COCO segmentations to binary masks, through pycocotools."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

MIN_POLYGON_NUMBERS = 6  # three points; four numbers would be taken for a box by pycocotools


def decode_segmentation(segmentation: Any, height: int, width: int) -> np.ndarray:
    """A COCO `segmentation` as (height, width) uint8, 1 inside; parts that overlap count once.

    Takes a list of polygons [x0, y0, x1, y1, ...], a run-length code, or a list of run-length codes (as in
    RefCLEF), each compressed (`counts` a string) or not (`counts` a list). Polygons of fewer than three
    points cover nothing; an empty list is an empty mask. Raises ValueError for anything else, and for a
    run-length code of another size.
    """
    if isinstance(segmentation, Mapping):
        segmentation = [segmentation]
    if not isinstance(segmentation, list):
        raise ValueError(f"a segmentation is a list or a run-length code, got {type(segmentation).__name__}")
    mask = np.zeros((height, width), dtype=np.uint8)
    polygons = [part for part in segmentation if isinstance(part, list)]
    for code in (*_rasterize(polygons, height, width), *_run_lengths(segmentation, height, width)):
        mask |= coco_mask.decode(code)
    return mask


def union(masks: Iterable[np.ndarray], height: int, width: int) -> np.ndarray:
    """The pixels in any of `masks`, as (height, width) uint8; empty without masks."""
    result = np.zeros((height, width), dtype=np.uint8)
    for mask in masks:
        result |= mask
    return result


def _rasterize(polygons: list[list[float]], height: int, width: int) -> list[dict[str, Any]]:
    for polygon in polygons:
        if len(polygon) % 2:
            raise ValueError(f"a polygon lists x and y in turn, got {len(polygon)} numbers")
        if not all(isinstance(number, int | float) and np.isfinite(number) for number in polygon):
            raise ValueError(f"a polygon holds finite numbers only, got {polygon}")
    usable = [polygon for polygon in polygons if len(polygon) >= MIN_POLYGON_NUMBERS]
    return coco_mask.frPyObjects(usable, height, width) if usable else []


def _run_lengths(segmentation: list[Any], height: int, width: int) -> list[dict[str, Any]]:
    codes = []
    for part in segmentation:
        if isinstance(part, list):
            continue
        if not isinstance(part, Mapping) or "counts" not in part or "size" not in part:
            raise ValueError(f"a run-length code has 'counts' and 'size', got {part!r}")
        if tuple(part["size"]) != (height, width):
            raise ValueError(f"run-length code of size {tuple(part['size'])}, image of {(height, width)}")
        if isinstance(part["counts"], list):
            if sum(part["counts"]) != height * width:
                raise ValueError(
                    f"run lengths add up to {sum(part['counts'])}, not to {height * width} pixels"
                )
            codes.append(coco_mask.frPyObjects(dict(part), height, width))
        else:
            codes.append(dict(part))
    return codes
