"""Images with an EXIF orientation: in which frame their annotations were drawn.

A JPEG may store its pixels as the sensor gave them, with an EXIF tag that says how to turn them. Some annotation
tools show the upright image, some the stored pixels, and some show one and write the size of the other. We take the
frame that the annotations fit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image

from utils.data import storage
from utils.data.image_formats import FORMATS
from utils.data.images import check_num_pixels
from utils.data.polygons import extent_of, polygons_in

Size = tuple[int, int]  # (height, width)

SWAPPING = (5, 6, 7, 8)  # EXIF orientations that make a row a column
SLACK = 0.02  # fraction of a side that annotations of the right frame may stick out
BEYOND = 0.25  # fraction of a side; annotations that stick out farther may be of another image size


@dataclass(frozen=True)
class Frames:
    """The size of an image file as its pixels are stored, and upright."""

    stored: Size
    upright: Size
    is_turned: bool  # whether EXIF turns or mirrors it at all

    @classmethod
    def of(cls, path: Path) -> Frames | None:
        """From the file's header; None if it cannot be read, so that the decoder reports the fault."""
        try:
            with storage.open_file(path) as file, Image.open(file, formats=FORMATS) as image:
                check_num_pixels(image, path)
                orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
                stored = image.height, image.width
        except Exception:  # decoders raise anything on damaged headers
            return None
        upright = stored[::-1] if orientation in SWAPPING else stored
        return cls(stored=stored, upright=upright, is_turned=orientation in range(2, 9))

    def choose(self, drawn: Drawn, stated: Size | None) -> tuple[Size, str]:
        """The size of the frame that the annotations were drawn in, and the reason for the choice.

        The criteria, in this order: the size of run-length codes, the frame that the polygons fit, the size that the
        annotation file states. If none of them decides, the image is taken upright.
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
            return frame, "the annotations fit both"
        decided = next(place for place in range(3) if upright[place] != stored[place])
        reasons = (
            "its run-length codes have that size",
            "its polygons fit only that",
            "its polygons fit both, and the file states that size",
        )
        return frame, reasons[decided]


@dataclass(frozen=True)
class Drawn:
    """The extent of the annotations of one image."""

    extent: tuple[float, float] = (0.0, 0.0)  # largest y and x of the polygons
    sizes: tuple[Size, ...] = ()  # of run-length codes and mask files

    def reaches_beyond(self, frame: Size) -> bool:
        """Whether polygons reach so far outside of an image of this size that they may belong to a larger one."""
        return any(reach > (1 + BEYOND) * side for reach, side in zip(self.extent, frame, strict=True))

    @classmethod
    def of(cls, segmentations: Iterable[Any]) -> Drawn:
        """From the segmentations of a file; malformed ones are skipped, so that decoding reports the fault."""
        polygons: list[list[float]] = []
        sizes: list[Size] = []
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
    """(height, width) of a run-length code; None if it is not two integers."""
    size = code.get("size")
    if not isinstance(size, Sequence) or [type(number) for number in size] != [int, int]:
        return None
    return size[0], size[1]
