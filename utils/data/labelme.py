"""Shapes as labelme writes them, drawn into label images.

Each shape has a `label`, a `shape_type` and `points`, pairs [x, y]. The types: https://github.com/wkentaro/labelme.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from PIL import Image

from model.errors import UserError
from utils.data.image_formats import LABEL_FORMATS
from utils.data.images import check_num_pixels
from utils.data.polygons import NUMBERS, check_coordinates, check_pixels, pair_of, short

TARGET, IGNORED = 1, 255  # what draw_shapes writes; 0 for the rest
POLYGONS = ("polygon", "rotation", "oriented_rectangle", "quadrilateral")
AREAS = (*POLYGONS, "rectangle", "circle", "mask")  # shape types that enclose something
NO_AREAS = ("point", "points", "line", "linestrip")


@dataclass(frozen=True)
class Shape:
    """One checked shape, before it is known how large its image is."""

    where: str  # for messages: "shape 3 ('target')"
    value: int  # TARGET or IGNORED
    kind: str  # of AREAS
    points: list[list[float]]  # pairs [x, y]
    mask: np.ndarray | None = (
        None  # kind "mask" only: (height, width) uint8 of 0 and 1, its corner at points[0]
    )

    @property
    def polygon(self) -> list[float]:
        """Its points as [x0, y0, x1, y1, ...]."""
        return [number for point in self.points for number in point]


def read_shapes(shapes: Any) -> list[Shape]:
    """The shapes of a file that mark an area; shapes labelled "flag" carry remarks and are skipped.

    Raises UserError for a malformed shape, and for a shape type that encloses no area.
    """
    if not isinstance(shapes, list):
        raise UserError(f"'shapes' is a list, got {short(shapes)}")
    read = []
    for number, shape in enumerate(shapes):
        if not isinstance(shape, Mapping) or "label" not in shape or "points" not in shape:
            raise UserError(f"shape {number} is {short(shape)}; a shape has 'label' and 'points'")
        if not isinstance(shape["label"], str | int):
            raise UserError(f"shape {number}: 'label' is {short(shape['label'])}; it is a text")
        name = str(shape["label"]).lower()
        if name != "flag":
            read.append(_read_shape(shape, name, f"shape {number} ({name!r})"))
    return read


def _read_shape(shape: Mapping[str, Any], name: str, where: str) -> Shape:
    kind = shape.get("shape_type") or POLYGONS[0]
    kind = kind.lower() if isinstance(kind, str) else kind
    if kind in NO_AREAS:
        raise UserError(f"{where} is a {kind}, which encloses no area; draw a polygon")
    if kind not in AREAS:
        raise UserError(f"{where} has the shape_type {short(kind)}; known: {', '.join(AREAS)}")
    points = _pairs(shape["points"], where)
    if kind == "rectangle" and len(points) == 4:  # some tools write all corners
        kind = POLYGONS[0]
    needed = {"rectangle": 2, "circle": 2, "mask": 2}.get(kind)
    if needed and len(points) != needed:
        raise UserError(f"{where} is a {kind} of {len(points)} points; it has {needed}")
    value = IGNORED if "ignore" in name else TARGET
    mask = _decode_mask(shape.get("mask"), where) if kind == "mask" else None
    return Shape(where=where, value=value, kind=kind, points=points, mask=mask)


def _pairs(points: Any, where: str) -> list[list[float]]:
    if isinstance(points, list) and len(points) % 2 == 0 and set(map(type, points)) <= NUMBERS:
        points = [points[place : place + 2] for place in range(0, len(points), 2)]  # x0, y0, x1, y1, ...
    if not isinstance(points, list) or not points:
        raise UserError(f"the points of {where} must be pairs of numbers, got {short(points)}")
    points = [pair_of(point) for point in points]
    for point in points:
        if not isinstance(point, list) or len(point) != 2 or not set(map(type, point)) <= NUMBERS:
            raise UserError(f"the points of {where} must be pairs of numbers [x, y], got {short(point)}")
    return points


def _decode_mask(code: Any, where: str) -> np.ndarray:
    """A labelme mask, a grey PNG in base64, as (height, width) uint8 of 0 and 1."""
    if not isinstance(code, str):
        raise UserError(f"{where}: 'mask' is an image in base64, got {short(code)}")
    content = io.BytesIO(base64.b64decode(code, validate=True))
    with Image.open(content, formats=LABEL_FORMATS) as image:
        check_num_pixels(image, "a mask in it")
        return (np.asarray(image.convert("L")) > 0).astype(np.uint8)


def open_shapes(shapes: list[Shape]) -> list[str]:
    """The polygons of fewer than three points, named for messages: they enclose nothing and are drawn as lines."""
    return [shape.where for shape in shapes if shape.kind in POLYGONS and len(shape.points) < 3]


def draw_shapes(shapes: list[Shape], height: int, width: int) -> np.ndarray:
    """Shapes as (height, width) uint8, outlines included: TARGET, IGNORED, or 0.

    Large shapes are drawn first, so that small ones on top of them stay visible. Polygons are drawn as by LISA's
    reader, utils/data_processing.py. Raises UserError for coordinates far from the image or in fractions of its size.
    """
    for shape in shapes:
        try:
            check_coordinates(shape.polygon, height, width)
        except ValueError as problem:
            raise UserError(f"{shape.where}: {problem}") from None
    check_pixels([shape.polygon for shape in shapes if shape.value == TARGET], height, width)
    drawn = [(_draw(shape, height, width), shape.value) for shape in shapes]
    label = np.zeros((height, width), dtype=np.uint8)
    for mask, value in sorted(drawn, key=lambda part: int(part[0].sum()), reverse=True):
        label[mask > 0] = value
    return label


def _draw(shape: Shape, height: int, width: int) -> np.ndarray:
    """(height, width) uint8, 1 inside."""
    canvas = np.zeros((height, width), dtype=np.uint8)
    points = np.asarray(shape.points, dtype=np.float64).astype(np.int32)
    if shape.kind == "circle":  # its centre and a point on it
        radius = float(np.hypot(*np.subtract(shape.points[1], shape.points[0])))
        cv2.circle(canvas, points[0].tolist(), round(radius), 1, -1)
        return canvas
    if shape.mask is not None:
        return _place(canvas, shape.mask, *points[0].tolist())
    if shape.kind == "rectangle":  # two opposite corners
        (x0, y0), (x1, y1) = points.tolist()
        points = np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]], dtype=np.int32)
    cv2.polylines(canvas, [points], True, 1, 1)
    cv2.fillPoly(canvas, [points], 1)
    return canvas


def _place(canvas: np.ndarray, mask: np.ndarray, left: int, top: int) -> np.ndarray:
    """Copy the part of `mask` that lies inside of `canvas` when its first pixel is at (top, left)."""
    height, width = canvas.shape
    inside = mask[max(-top, 0) : max(height - top, 0), max(-left, 0) : max(width - left, 0)]
    if inside.size:
        y, x = max(top, 0), max(left, 0)
        canvas[y : y + inside.shape[0], x : x + inside.shape[1]] = inside
    return canvas
