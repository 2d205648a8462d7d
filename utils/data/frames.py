"""Images that the camera turned: in which frame their annotations were drawn.

A JPEG may hold its pixels as the sensor gave them and say in its EXIF block how to turn them. Some annotation tools
show the turned image, some the stored pixels, and some show one and write down the size of the other. The frame is
the one that the annotations fit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image

from model.files import open_regular
from utils.data.images import FORMATS
from utils.data.polygons import extent_of, polygons_in

Size = tuple[int, int]  # (height, width)

SWAPPING = (5, 6, 7, 8)  # EXIF orientations that make a row a column
SLACK = 0.02  # fraction of a side that annotations of the right frame may stick out
BEYOND = 0.25  # fraction of a side; annotations that stick out farther may be of another image size


@dataclass(frozen=True)
class Frames:
    """The sizes of one image file, as its pixels are stored and as it is seen."""

    stored: Size
    upright: Size
    is_turned: bool  # whether EXIF turns or mirrors it at all

    @classmethod
    def of(cls, path: Path) -> Frames | None:
        """From the file's header; None for what is no readable image, which its decoder will tell."""
        try:
            with open_regular(path) as file, Image.open(file, formats=FORMATS) as image:
                orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
                stored = image.height, image.width
        except Exception:  # decoders raise anything on damaged headers
            return None
        upright = stored[::-1] if orientation in SWAPPING else stored
        return cls(stored=stored, upright=upright, is_turned=orientation in range(2, 9))

    def choose(self, drawn: Drawn, stated: Size | None) -> tuple[Size, str]:
        """The size of the frame that the annotations are in, and why it is that one.

        Run-length codes tell it by their size, polygons by the side that they do not fit, the annotation file by what
        it states; where nothing decides, the image is taken upright.
        """

        def misfits(frame: Size) -> tuple[int, bool, bool]:
            return (
                sum(size != frame for size in drawn.sizes),
                any(
                    reach > side + max(2, SLACK * side)
                    for reach, side in zip(drawn.extent, frame, strict=True)
                ),
                stated is not None and stated != frame,
            )

        upright, stored = misfits(self.upright), misfits(self.stored)
        frame = self.stored if stored < upright else self.upright
        if self.stored == self.upright or upright == stored:
            return frame, "nothing tells otherwise"
        decided = next(place for place in range(3) if upright[place] != stored[place])
        reasons = (
            "its run-length codes have that size",
            "its polygons fit only that",
            "its polygons do not tell, and the file states that size",
        )
        return frame, reasons[decided]


@dataclass(frozen=True)
class Drawn:
    """How far the annotations of one image reach."""

    extent: tuple[float, float] = (0.0, 0.0)  # largest y and x of the polygons
    sizes: tuple[Size, ...] = ()  # of run-length codes and mask files

    def reaches_beyond(self, frame: Size) -> bool:
        """Whether some polygon ends so far outside an image of this size that it may be of a larger one."""
        return any(reach > (1 + BEYOND) * side for reach, side in zip(self.extent, frame, strict=True))

    @classmethod
    def of(cls, segmentations: Iterable[Any]) -> Drawn:
        """From segmentations as a file has them; what is malformed is passed over, as decoding it will tell."""
        polygons, sizes = [], []
        for segmentation in segmentations:
            for code in segmentation if isinstance(segmentation, list) else [segmentation]:
                if isinstance(code, Mapping) and (size := size_of(code)) is not None:
                    sizes.append(size)
            if isinstance(segmentation, list):
                try:
                    polygons += polygons_in(segmentation)
                except ValueError:
                    continue
        return cls(extent=extent_of(polygons), sizes=tuple(sizes))


def size_of(code: Mapping[str, Any]) -> Size | None:
    """(height, width) of a run-length code, where it is written as two whole numbers."""
    size = code.get("size")
    if not isinstance(size, Sequence) or [type(number) for number in size] != [int, int]:
        return None
    return size[0], size[1]
