"""Polygons in annotation files: the forms that tools write, and checks of their numbers before they reach a decoder.

COCO writes a segmentation as a list of polygons, each [x0, y0, x1, y1, ...]. These forms are unambiguous and read as
well: one polygon without the outer list, points as pairs [[x0, y0], [x1, y1], ...] and as objects [{"x": x0, "y":
y0}, ...].
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from model.errors import UserError

MAX_SIDES = 10  # largest distance of a coordinate from the origin, in longer image sides
# Length of one outline in pixels. pycocotools takes five samples per pixel and counts them in 32 bits; a longer
# outline is noise, and would take a gigabyte.
MAX_OUTLINE = 2**22
MIN_NUMBERS = 6  # three points; pycocotools interprets four numbers as a box
# A polygon that covers no pixel and is at most this large is a leftover of a tool: pixels, fraction of the longer
# side.
STRAY_PIXELS, STRAY_SHARE = 3.0, 0.01
NUMBERS = {int, float}  # bool, a subclass of int, is not accepted
FRACTION_SLACK = 0.1  # how far outside of 0 to 1 fractions of the image size may lie

STRAY_PART = "a polygon too small to cover a pixel, left out of its mask"
FLAT = "one polygon comes without the outer list; a segmentation is a list of polygons"
PAIRS = "points come as pairs [x, y]; COCO writes them flat, [x0, y0, x1, y1, ...]"
OBJECTS = 'points come as objects {"x": x, "y": y}; COCO writes them flat, [x0, y0, x1, y1, ...]'


class EmptyMaskError(UserError):
    """A mask or a polygon that covers no pixel of its image."""


_brief = reprlib.Repr()
_brief.maxlevel, _brief.maxlist, _brief.maxdict, _brief.maxstring, _brief.maxother = 2, 4, 2, 40, 40


def short(value: Any) -> str:
    """For messages: the repr of a value, shortened where it is long or deep."""
    return _brief.repr(value)


def form_of(segmentation: Any) -> str:
    """FLAT, PAIRS or OBJECTS for a segmentation in that form; "" for COCO's form and for malformed ones."""
    if not isinstance(segmentation, list) or not segmentation:
        return ""
    first = segmentation[0]
    if type(first) is list and len(first) > 2 and type(first[0]) in NUMBERS:  # as COCO writes it
        return ""
    if type(first) in NUMBERS:
        return FLAT
    if _is_point_object(first) or (isinstance(first, list) and first and _is_point_object(first[0])):
        return OBJECTS
    if isinstance(first, list) and first and _is_pair(first[0]):
        return PAIRS
    return PAIRS if len(segmentation) > 1 and all(_is_pair(part) for part in segmentation) else ""


def polygons_in(segmentation: list[Any]) -> list[list[float]]:
    """The polygons of a segmentation, each [x0, y0, x1, y1, ...]; run-length codes among them are skipped.

    Raises UserError for a polygon in none of the forms above.
    """
    if segmentation and not any(isinstance(part, list | Mapping) for part in segmentation):
        return [_numbers(segmentation)]
    parts = [pair_of(part) for part in segmentation if not is_run_lengths(part)]
    # [[x, y], [x, y], [x, y]]: a polygon of one point encloses nothing, so these are the points of one polygon.
    if len(parts) > 1 and all(_is_pair(part) for part in parts):
        return [_numbers([number for pair in parts for number in pair])]
    return [_flat(part) for part in parts]


def is_run_lengths(part: Any) -> bool:
    """Whether a part of a segmentation is a run-length code, well-formed or not."""
    return isinstance(part, Mapping) and not _is_point_object(part)


def pair_of(point: Any) -> Any:
    """{"x": x, "y": y} as [x, y]; anything else as it is."""
    return [point["x"], point["y"]] if _is_point_object(point) else point


def _is_point_object(part: Any) -> bool:
    return isinstance(part, Mapping) and "x" in part and "y" in part and "counts" not in part


def _is_pair(part: Any) -> bool:
    return isinstance(part, list) and len(part) == 2 and not isinstance(part[0], list | Mapping)


def _flat(part: Any) -> list[float]:
    if not isinstance(part, list):
        raise UserError(f"a segmentation is a list of polygons, got {short(part)} in it")
    if part and not set(map(type, part)) <= NUMBERS:
        part = [pair_of(point) for point in part]
    if part and all(isinstance(point, list) for point in part):
        if not all(_is_pair(point) for point in part):
            wrong = next(point for point in part if not _is_pair(point))
            raise UserError(
                f"a point is a pair [x, y], got {short(wrong)}; write polygons as [x0, y0, x1, y1, ...]"
            )
        part = [number for point in part for number in point]
    return _numbers(part)


def _numbers(polygon: list[Any]) -> list[float]:
    if not set(map(type, polygon)) <= NUMBERS:
        wrong = next(number for number in polygon if type(number) not in NUMBERS)
        raise UserError(f"a polygon holds finite numbers only, got {short(wrong)}")
    if len(polygon) % 2:
        raise UserError(f"a polygon lists x and y in turn, got {len(polygon)} numbers")
    return polygon


def check_coordinates(polygon: Iterable[float], height: int, width: int) -> np.ndarray:
    """The points of [x0, y0, x1, y1, ...] as (num_points, 2) float64.

    Raises UserError for a number that is not finite, a coordinate farther from the origin than MAX_SIDES longer image
    sides, and an outline of more than MAX_OUTLINE pixels: decoders crash or exhaust the memory on these.
    """
    limit = MAX_SIDES * max(height, width)
    try:
        points = np.asarray(polygon, dtype=np.float64).reshape(-1, 2)
    except OverflowError:  # a whole number of more than 308 digits
        raise UserError(
            f"a coordinate is too large for a number; at most {limit} is near this image"
        ) from None
    if not len(points):
        return points
    sizes = np.abs(points)
    if not sizes.max() <= limit:  # nor if one is no number
        if not np.isfinite(points).all():
            raise UserError(f"a polygon holds finite numbers only, got {points[~np.isfinite(points)][0]}")
        raise UserError(
            f"a coordinate is {points[sizes > limit][0]:g}, more than {MAX_SIDES} sides away from an image "
            f"that is {width} wide and {height} high; are the coordinates pixels of this image?"
        )
    steps = np.abs(points - np.concatenate((points[-1:], points[:-1])))
    if (outline := steps.max(axis=1).sum()) > MAX_OUTLINE:
        raise UserError(f"an outline of {outline:.0f} pixels; it may have {MAX_OUTLINE}")
    return points


def check_pixels(polygons: Iterable[Iterable[float]], height: int, width: int) -> None:
    """UserError when all coordinates lie between 0 and 1: they are fractions of the size, as YOLO writes them.

    Some of them may lie a little outside, where an object reaches the border.
    """
    numbers = [number for polygon in polygons for number in polygon]
    if not numbers or min(numbers) < -FRACTION_SLACK or max(numbers) > 1 + FRACTION_SLACK:
        return
    if all(0 <= number <= 1 for number in numbers) or any(number % 1 for number in numbers):
        raise UserError(
            "all coordinates are between 0 and 1: fractions of the image's size, not pixels; multiply x by the width "
            f"({width}) and y by the height ({height})"
        )


def fault_of(polygon: list[float], height: int, width: int) -> str:
    """Why a polygon cannot cover any pixel, judged by its points; "" if it can."""
    if len(polygon) < MIN_NUMBERS:
        return f"a polygon of {len(polygon) // 2} points {polygon}; it needs three to cover anything"
    x, y = polygon[::2], polygon[1::2]
    if min(x) >= width or max(x) <= 0 or min(y) >= height or max(y) <= 0:
        return (
            f"a polygon with x {min(x):g} to {max(x):g}, y {min(y):g} to {max(y):g} lies outside the image, which is "
            f"{width} wide and {height} high; are its coordinates pixels of this image?"
        )
    return ""


def is_stray(polygon: list[float], height: int, width: int) -> bool:
    """Whether a polygon that covers no pixel is small enough to be a leftover of a tool, rather than misplaced."""
    x, y = polygon[::2] or [0], polygon[1::2] or [0]
    return max(max(x) - min(x), max(y) - min(y)) <= max(STRAY_PIXELS, STRAY_SHARE * max(height, width))


def extent_of(polygons: Iterable[list[float]]) -> tuple[float, float]:
    """The largest (y, x) of all points; (0, 0) without points."""
    largest = [(max(polygon[1::2]), max(polygon[::2])) for polygon in polygons if len(polygon) >= 2]
    return max((y for y, _ in largest), default=0.0), max((x for _, x in largest), default=0.0)
