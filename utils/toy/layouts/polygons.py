"""Masks as polygons: along the edges of pixels for COCO, through border pixels for labelme."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask

Corner = tuple[int, int]
# Polygons, each [x, y, x, y, ...], or run lengths: {"size": ..., "counts": ...}.
Segmentation = list[list[float]] | dict[str, Any]

# Neighbour (down, across) of a pixel at (0, 0) -> the edge between them, from corner to corner as (x, y).
EDGES: dict[tuple[int, int], tuple[Corner, Corner]] = {
    (-1, 0): ((0, 0), (1, 0)),
    (0, 1): ((1, 0), (1, 1)),
    (1, 0): ((1, 1), (0, 1)),
    (0, -1): ((0, 1), (0, 0)),
}


def pixel_outlines(mask: np.ndarray) -> list[list[float]]:
    """The outlines of a (height, width) mask along pixel edges, each [x, y, x, y, ...], holes as well."""
    padded = np.pad(mask.astype(bool), 1)
    steps: dict[Corner, list[Corner]] = defaultdict(list)  # edges are directed, with the mask on their right
    for (down, across), edge in EDGES.items():
        outside = ~np.roll(padded, (-down, -across), (0, 1))
        for y, x in np.argwhere(padded & outside) - 1:
            (x0, y0), (x1, y1) = edge
            steps[int(x) + x0, int(y) + y0].append((int(x) + x1, int(y) + y1))
    outlines = []
    while steps:
        corner = start = next(iter(steps))
        outline: list[Corner] = []
        while True:
            following = steps[corner].pop()
            if not steps[corner]:
                del steps[corner]
            if len(outline) > 1 and _straight(outline[-2], outline[-1], corner):
                outline[-1] = corner
            else:
                outline.append(corner)
            corner = following
            if corner == start:
                break
        if _straight(outline[-2], outline[-1], start):
            outline.pop()
        if _straight(outline[-1], outline[0], outline[1]):
            outline.pop(0)
        outlines.append([float(number) for point in outline for number in point])
    return outlines


def _straight(first: Corner, second: Corner, third: Corner) -> bool:
    return first[0] == second[0] == third[0] or first[1] == second[1] == third[1]


def coco_segmentation(mask: np.ndarray, form: str) -> Segmentation:
    """A mask in COCO's forms: "polygons" where they decode to exactly this mask, else run lengths.

    `form` is "polygons", "counts" (a list of run lengths) or "compressed" (pycocotools' string).
    """
    height, width = mask.shape
    if form == "polygons":
        outlines = pixel_outlines(mask)
        decoded = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(outlines, height, width)))
        if np.array_equal(decoded.astype(bool), mask):
            return outlines
        form = "compressed"
    if form == "compressed":
        code = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
        return {"size": [height, width], "counts": code["counts"].decode("ascii")}
    if form == "counts":
        flat = mask.ravel(order="F").astype(np.int8)
        changes = np.flatnonzero(np.diff(flat)) + 1
        counts = np.diff(np.concatenate([[0], changes, [flat.size]])).tolist()
        return {"size": [height, width], "counts": [0, *counts] if flat[0] else counts}  # runs start with 0s
    raise ValueError(f"unknown form {form!r}; known: polygons, counts, compressed")


def labelme_shapes(target: np.ndarray, ignore: np.ndarray, image_name: str) -> list[dict[str, Any]]:
    """labelme polygons of a mask and of its ignored pixels, to be drawn filled and with outline, large ones first.

    A polygon has no holes: a hole of the target becomes an ignored polygon on top of it.
    """
    shapes = []
    enclosed = np.zeros(target.shape, np.uint8)
    for label, mask in (("target", target), ("ignore", ignore)):
        for contour in _outer_contours(mask):
            shapes.append(_shape(label, contour, image_name))
            if label == "target":
                cv2.drawContours(enclosed, [contour], -1, 1, cv2.FILLED)
    shapes += [
        _shape("ignore", contour, image_name)
        for contour in _outer_contours(enclosed.astype(bool) & ~target & ~ignore)
    ]
    return shapes


def _outer_contours(mask: np.ndarray) -> Sequence[np.ndarray]:
    return cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)[0]


def _shape(label: str, contour: np.ndarray, image_name: str) -> dict[str, Any]:
    points = [[float(x), float(y)] for x, y in contour.reshape(-1, 2)]
    return {
        "label": label, "labels": [label], "shape_type": "polygon", "image_name": image_name,
        "points": points, "group_id": None, "group_ids": [None], "flags": {},
    }  # fmt: skip
