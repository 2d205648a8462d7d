"""Which samples are worth a look, and their pictures, small enough to be kept and sent between processes."""

from __future__ import annotations

import bisect
import io
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image

from utils.reports.visualize import LegendEntry, SheetRow, resize_labels

SIDE = 320  # pixels of the longer side of a picture that is kept
QUALITY = 92  # of its JPEG


@dataclass(frozen=True, kw_only=True)
class PackedRow:
    """A SheetRow for the way to another process, or to disk and back."""

    image: bytes  # JPEG
    truth: np.ndarray  # (height, width)
    prediction: np.ndarray  # (height, width)
    colours: np.ndarray  # (num_colours, 3) uint8
    legend: tuple[LegendEntry, ...]
    score: float
    source: str


def pack(row: SheetRow) -> PackedRow:
    """Shrink a row to SIDE and write its image as JPEG."""
    height, width = row.image.shape[:2]
    scale = min(SIDE / max(height, width), 1)
    size = max(round(height * scale), 1), max(round(width * scale), 1)
    image = Image.fromarray(row.image)
    if scale < 1:
        image = image.resize(size[::-1], Image.Resampling.LANCZOS)
    return PackedRow(
        image=to_jpeg(image),
        truth=resize_labels(row.truth, size),
        prediction=resize_labels(row.prediction, size),
        colours=row.colours,
        legend=row.legend,
        score=row.score,
        source=row.source,
    )


def unpack(packed: PackedRow) -> SheetRow:
    """What `pack` left of a row."""
    with Image.open(io.BytesIO(packed.image)) as picture:
        image = np.array(picture.convert("RGB"))
    return SheetRow(
        image=image,
        truth=packed.truth,
        prediction=packed.prediction,
        colours=packed.colours,
        legend=packed.legend,
        score=packed.score,
        source=packed.source,
    )


def to_jpeg(image: Image.Image, quality: int = QUALITY) -> bytes:
    """The picture as the bytes of a JPEG file, colours at full size."""
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality, subsampling=0)
    return stream.getvalue()


Key = tuple[float, int, int]


def _key(index: int, score: float) -> Key:
    """Samples in one order, the worst first. Equal scores in no order: in that of the data, each would enter."""
    return score, zlib.crc32(index.to_bytes(8, "little")), index


class Extremes:
    """The best and the worst of the samples seen so far.

    What is among the best of all samples was among the best of those seen when it came, in any order and in any
    share of them; so a picture has to be made only of samples that enter.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._worst: list[Key] = []  # the worst first
        self._best: list[Key] = []  # the best last

    def enters(self, index: int, score: float) -> bool:
        """Take note of a sample; whether it is among the `most` best or worst now. NaN never is."""
        if math.isnan(score):
            return False
        key = _key(index, score)
        if key not in self._worst:
            bisect.insort(self._worst, key)
            del self._worst[self.most :]
        if key not in self._best:
            bisect.insort(self._best, key)
            del self._best[: -self.most or None]
        return key in self._worst or key in self._best


def worst_and_best(scores: Mapping[int, float], most: int) -> tuple[list[int], list[int]]:
    """Indices of the `most` worst samples, the worst first, and of the best, the best first; none is in both."""
    ranked = sorted(_key(index, score) for index, score in scores.items() if not math.isnan(score))
    num_worst = min(most, (len(ranked) + 1) // 2)
    num_best = min(most, len(ranked) - num_worst)
    indices = [index for _, _, index in ranked]
    return indices[:num_worst], indices[::-1][:num_best]
