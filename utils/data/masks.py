"""COCO segmentations to binary masks, through pycocotools."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from model.errors import UserError
from utils.data.polygons import MIN_NUMBERS, check_coordinates, is_run_lengths, polygons_in, short

MAX_CODE_LENGTH = 6  # characters of one number after the first; pycocotools' numbers have 32 bits


def decode_segmentation(segmentation: Any, height: int, width: int) -> np.ndarray:
    """A COCO `segmentation` as (height, width) uint8, 1 inside; the union of its parts.

    Takes a list of polygons [x0, y0, x1, y1, ...] (or in another form of polygons.py), a run-length code, or a list
    of run-length codes (as in RefCLEF), each compressed (`counts` a string) or not (`counts` a list). Polygons of
    fewer than three points cover nothing; an empty list is an empty mask. Raises UserError for anything else, for
    numbers that pycocotools cannot handle, and for a run-length code of another size.
    """
    if isinstance(segmentation, Mapping):
        segmentation = [segmentation]
    if not isinstance(segmentation, list):
        raise UserError(
            f"a segmentation is a list of polygons or a run-length code, got {short(segmentation)}"
        )
    codes = [
        *_rasterize(polygons_in(segmentation), height, width),
        *(_run_lengths(part, height, width) for part in segmentation if is_run_lengths(part)),
    ]
    if not codes:
        return np.zeros((height, width), dtype=np.uint8)
    columns = coco_mask.decode(codes[0] if len(codes) == 1 else coco_mask.merge(codes)).T  # (width, height)
    return cv2.transpose(columns)  # to rows, faster than NumPy


def annotated_size(image: Mapping[str, Any]) -> tuple[int, int] | None:
    """(height, width) that an `images` entry of a COCO file states; None where one of them is missing or null.

    Raises UserError for anything but numbers of pixels.
    """
    height, width = image.get("height"), image.get("width")
    if height is None or width is None:
        return None
    for number in (height, width):
        if type(number) not in (int, float) or not number >= 1 or number != number // 1:
            raise UserError(
                f"height and width are {(height, width)}; they are numbers of pixels, or left out"
            )
    return int(height), int(width)


def union(masks: Iterable[np.ndarray], height: int, width: int) -> np.ndarray:
    """The union of `masks` as (height, width) uint8; all 0 without masks."""
    result = np.zeros((height, width), dtype=np.uint8)
    for mask in masks:
        result |= mask
    return result


def _rasterize(polygons: list[list[float]], height: int, width: int) -> list[dict[str, Any]]:
    points = [check_coordinates(polygon, height, width).ravel() for polygon in polygons]
    usable = [polygon for polygon in points if len(polygon) >= MIN_NUMBERS]
    return coco_mask.frPyObjects(usable, height, width) if usable else []


def _run_lengths(code: Mapping[str, Any], height: int, width: int) -> dict[str, Any]:
    """A run-length code of this size in the compressed form that pycocotools decodes."""
    if "counts" not in code or "size" not in code:
        raise UserError(f"a run-length code has 'counts' and 'size', got {short(dict(code))}")
    size = tuple(code["size"]) if isinstance(code["size"], list) else code["size"]
    if size != (height, width):
        swapped = "; are height and width swapped?" if size == (width, height) else ""
        raise UserError(f"run-length code of size {short(size)}, image of {(height, width)}{swapped}")
    counts = code["counts"]
    if not isinstance(counts, list):
        _check_compressed(counts, height * width)
        return {"size": [height, width], "counts": counts}
    if not all(type(run) in (int, float) and run >= 0 and run == run // 1 for run in counts):
        raise UserError("run lengths are whole numbers >= 0")
    if sum(counts) != height * width:
        raise UserError(f"run lengths add up to {sum(counts)}, not to {height * width} pixels")
    whole = [int(run) for run in counts]
    return coco_mask.frPyObjects({"size": [height, width], "counts": whole}, height, width)


def _check_compressed(counts: Any, num_pixels: int) -> None:
    """UserError for a code that does not cover `num_pixels`: pycocotools decodes truncated codes to unset memory.

    The code has six bits per character, the highest of which says that the number continues; from the fourth on, runs
    are stored as the difference to the run before the last. Source: rleFrString in pycocotools' maskApi.c.
    """
    if not isinstance(counts, str | bytes):
        raise UserError(f"'counts' is a string or a list of run lengths, got {type(counts).__name__}")
    written = counts.encode(errors="surrogatepass") if isinstance(counts, str) else counts
    code = np.frombuffer(written, np.uint8).astype(np.int64) - 48
    if not len(code) or code.min() < 0 or code.max() > 63 or code[-1] & 32:
        raise UserError("the run-length code is truncated or has invalid characters")
    last = np.flatnonzero(code & 32 == 0)  # last character of each number
    first = np.concatenate([[0], last[:-1] + 1])
    if (last - first).max() > MAX_CODE_LENGTH:
        raise UserError("the run-length code holds a number that is too long")
    place = 5 * (np.arange(len(code)) - np.repeat(first, last - first + 1))
    runs = np.add.reduceat((code & 31) << place, first)
    runs -= np.where(code[last] & 16, np.int64(1) << (5 * (last - first + 1)), 0)
    for parity in (1, 2):
        runs[parity::2] = np.cumsum(runs[parity::2])
    if runs.min() < 0 or runs.sum() != num_pixels:
        raise UserError(f"run lengths add up to {runs.sum()}, not to {num_pixels} pixels")
