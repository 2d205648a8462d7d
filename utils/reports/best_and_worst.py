"""The best and the worst samples, as rows that are small enough to be kept on disk and sent between processes."""

from __future__ import annotations

import bisect
import io
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image

from utils.reports.drawing import LegendEntry, resize_labels, shrunk_size
from utils.reports.sheet import SheetRow

SIDE = 320  # pixels of the longest side of an image that is kept
QUALITY = 92  # of its JPEG


@dataclass(frozen=True, kw_only=True)
class CompressedRow:
    """A SheetRow as it is sent to another process, or written to disk."""

    image: bytes  # JPEG
    truth: np.ndarray  # (height, width)
    prediction: np.ndarray  # (height, width)
    colours: np.ndarray  # (num_colours, 3) uint8
    legend: tuple[LegendEntry, ...]
    score: float
    source: str


def compress(row: SheetRow) -> CompressedRow:
    """Shrink a row to SIDE and write its image as JPEG."""
    size = shrunk_size(row.image, SIDE)
    image = Image.fromarray(row.image)
    if size != row.image.shape[:2]:
        image = image.resize(size[::-1], Image.Resampling.LANCZOS)
    return CompressedRow(
        image=to_jpeg(image),
        truth=resize_labels(row.truth, size),
        prediction=resize_labels(row.prediction, size),
        colours=row.colours,
        legend=row.legend,
        score=row.score,
        source=row.source,
    )


def decompress(compressed: CompressedRow) -> SheetRow:
    """The row that `compress` was given, smaller and with the losses of JPEG."""
    with Image.open(io.BytesIO(compressed.image), formats=["JPEG"]) as jpeg:
        image = np.array(jpeg.convert("RGB"))
    return SheetRow(
        image=image,
        truth=compressed.truth,
        prediction=compressed.prediction,
        colours=compressed.colours,
        legend=compressed.legend,
        score=compressed.score,
        source=compressed.source,
    )


def to_jpeg(image: Image.Image, quality: int = QUALITY) -> bytes:
    """The image as the bytes of a JPEG file, without chroma subsampling."""
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality, subsampling=0)
    return stream.getvalue()


Rank = tuple[float, int, int]


def _rank(index: int, score: float) -> Rank:
    """A sort key, the worst sample first. Ties are ranked by a hash: in the order of the data each would enter."""
    return score, zlib.crc32(index.to_bytes(8, "little")), index


class Extremes:
    """The best and the worst of the samples seen so far.

    A sample that is among the best of all was among the best so far when it was seen, in whatever order and on
    whichever process; so only samples that enter have to keep their image.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._worst: list[Rank] = []  # the worst first
        self._best: list[Rank] = []  # the best last

    def enters(self, index: int, score: float) -> bool:
        """Add a sample; returns whether it is among the `most` best or worst so far. NaN never is."""
        if math.isnan(score):
            return False
        rank = _rank(index, score)
        if rank not in self._worst:
            bisect.insort(self._worst, rank)
            del self._worst[self.most :]
        if rank not in self._best:
            bisect.insort(self._best, rank)
            del self._best[: -self.most or None]
        return rank in self._worst or rank in self._best

    @property
    def indices(self) -> set[int]:
        """Of the samples that are among the best or the worst so far."""
        return {index for _, _, index in (*self._worst, *self._best)}


def worst_and_best(scores: Mapping[int, float], most: int) -> tuple[list[int], list[int]]:
    """Indices of the `most` worst samples, the worst first, and of the best, the best first; none is in both."""
    ranked = sorted(_rank(index, score) for index, score in scores.items() if not math.isnan(score))
    num_worst = min(most, (len(ranked) + 1) // 2)
    num_best = min(most, len(ranked) - num_worst)
    indices = [index for _, _, index in ranked]
    return indices[:num_worst], indices[::-1][:num_best]
