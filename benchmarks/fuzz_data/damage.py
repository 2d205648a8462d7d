"""What is done to a file: cut, flipped, emptied, exchanged, made of another type, filled with absurd values."""

from __future__ import annotations

import io
import os
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.fuzz_data.structured import (
    absurd_name,
    absurd_number,
    deep,
    left_out,
    lines,
    long_text,
    missing_key,
    repeated,
    wrong_type,
)

Rng = np.random.Generator
WRONG_SIZE, OTHER_FORMAT = "wrong size", "another format"
RESIZING = (WRONG_SIZE, OTHER_FORMAT)  # an icon has at most 256 pixels a side
IMAGES, LABELS = (".jpg", ".jpeg"), (".png", ".tif")


# An annotation without its image is left out and counted, and nobody knows which image lacks it; polygons of
# published data sets reach a pixel over the border.
HIDDEN = re.compile(r"/image_id: |/segmentation/.* -> -1$")


@dataclass(frozen=True)
class Damage:
    """A kind of damage.

    apply: changes the file; returns what it did, or None where it cannot be done to this file.
    hides_in: files whose readers cannot always tell. In all others no label may come out otherwise than before.
    """

    name: str
    apply: Callable[[Path, Rng], str | None]
    suffixes: tuple[str, ...] = ()  # (): any file
    hides_in: tuple[str, ...] = ()

    def shows_in(self, path: Path, did: str) -> bool:
        """Whether a reader of this file can tell what was done."""
        return path.suffix.lower() not in self.hides_in and not HIDDEN.search(did)


# ------------------------------------------------------------------------------------------- any file


def truncate(path: Path, rng: Rng) -> str | None:
    content = path.read_bytes()
    kept = int(rng.integers(1, max(len(content), 2)))
    path.write_bytes(content[:kept])
    return f"{kept} of {len(content)} bytes"


def flip(path: Path, rng: Rng) -> str | None:
    content = bytearray(path.read_bytes())
    if not content:
        return None
    places = rng.integers(len(content) * 8, size=int(rng.integers(1, 9)))
    for place in places.tolist():
        content[place // 8] ^= 1 << place % 8
    path.write_bytes(bytes(content))
    return f"bits {sorted(places.tolist())[:4]}"


def empty(path: Path, rng: Rng) -> str | None:
    path.write_bytes(b"")
    return "0 bytes"


def delete(path: Path, rng: Rng) -> str | None:
    path.unlink()
    return "deleted"


def noise(path: Path, rng: Rng) -> str | None:
    path.write_bytes(rng.integers(0, 256, int(rng.integers(1, 5000)), dtype=np.uint8).tobytes())
    return "random bytes"


def zeros(path: Path, rng: Rng) -> str | None:
    path.write_bytes(bytes(path.stat().st_size))
    return "zeros, as after a power cut"


def folder(path: Path, rng: Rng) -> str | None:
    path.unlink()
    path.mkdir()
    return "a folder in its place"


def loop(path: Path, rng: Rng) -> str | None:
    path.unlink()
    path.symlink_to(path.name)
    return "a link to itself"


def dangling(path: Path, rng: Rng) -> str | None:
    path.unlink()
    path.symlink_to("nowhere")
    return "a link to nothing"


def pipe(path: Path, rng: Rng) -> str | None:
    path.unlink()
    os.mkfifo(path)
    return "a pipe in its place"


def device(path: Path, rng: Rng) -> str | None:
    path.unlink()
    path.symlink_to("/dev/zero")
    return "a link to /dev/zero"


# ------------------------------------------------------------------------------------------- images and labels


def size(path: Path, rng: Rng) -> str | None:
    with Image.open(path) as image:
        image.load()
        width, height = image.size
        wanted = [(width + 1, height), (width, height - 1), (2 * width, 2 * height), (1, 1)]
        other = wanted[int(rng.integers(len(wanted)))]
        changed = image.resize(other, Image.Resampling.NEAREST)
        _save(path, changed, image.format)
    return f"{width}x{height} -> {other[0]}x{other[1]}"


def mode(path: Path, rng: Rng) -> str | None:
    with Image.open(path) as image:
        image.load()
        # A label image of two values is a valid one.
        two = () if path.suffix in LABELS else ("1",)
        modes = [m for m in (*two, "L", "LA", "RGB", "RGBA", "P", "CMYK", "I", "F") if m != image.mode]
        other = modes[int(rng.integers(len(modes)))]
        stream = io.BytesIO()
        image_format = {"CMYK": "TIFF", "F": "TIFF"}.get(other, "PNG")
        try:
            image.convert(other).save(stream, image_format)
        except (ValueError, OSError):
            return None
        described = f"{image.mode} -> {other}"
    path.write_bytes(stream.getvalue())
    return described


def values(path: Path, rng: Rng) -> str | None:
    """Values that no class has: the most frequent value becomes one that the file does not hold."""
    with Image.open(path) as image:
        if image.mode not in ("L", "P", "I;16", "I"):
            return None
        array = np.array(image)
        palette, image_format = image.getpalette() if image.mode == "P" else None, image.format
    found, counts = np.unique(array, return_counts=True)
    other = int(rng.choice([201, 222, 240, 253] if array.dtype == np.uint8 else [9999, 60000]))
    if other in found:
        return None
    array = np.where(array == found[counts.argmax()], array.dtype.type(other), array)
    changed = Image.fromarray(array)
    if palette is not None:
        changed.putpalette(palette)
    _save(path, changed, image_format)
    return f"value {found[counts.argmax()]} -> {other}"


def huge_header(path: Path, rng: Rng) -> str | None:
    """A PNG or JPEG whose header announces far more pixels than it has."""
    content = bytearray(path.read_bytes())
    if content[:4] == b"\x89PNG":
        content[16:24] = (int(rng.choice([30_000, 2**31 - 1])).to_bytes(4, "big")) * 2
        content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    elif (place := content.find(b"\xff\xc0")) > 0:
        content[place + 5 : place + 9] = b"\xff\xfe\xff\xfe"
    else:
        return None
    path.write_bytes(bytes(content))
    return "a header of a huge image"


def other_format(path: Path, rng: Rng) -> str | None:
    with Image.open(path) as image:
        image.load()
        stream = io.BytesIO()
        choice = ["GIF", "BMP", "ICO", "PPM"][int(rng.integers(4))]
        try:
            image.convert("RGB").save(stream, choice)
        except (ValueError, OSError):
            return None
    path.write_bytes(stream.getvalue())
    return f"a {choice} under its name"


def _save(path: Path, image: Image.Image, image_format: str | None) -> None:
    stream = io.BytesIO()
    image.save(stream, image_format or "PNG")
    path.write_bytes(stream.getvalue())


STRUCTURED = (".json", ".jsonl", ".p")
TEXTS = (".txt", ".jsonl", ".csv")
NO_SUMS = (*STRUCTURED, *TEXTS, *IMAGES, ".tif", ".mat")  # a flipped bit may give another valid file
DAMAGES = (
    Damage("truncated", truncate, hides_in=(".txt",)),  # half a list of lines is a list of lines
    Damage("bits flipped", flip, hides_in=NO_SUMS),
    Damage("empty", empty),
    Damage("deleted", delete),
    Damage("random bytes", noise),
    Damage("zeros", zeros),
    Damage("a folder", folder),
    Damage("link to itself", loop),
    Damage("link to nothing", dangling),
    Damage("pipe", pipe),
    Damage("device", device),
    Damage(WRONG_SIZE, size, IMAGES + LABELS),
    Damage("wrong mode", mode, IMAGES + LABELS),
    Damage("wrong label values", values, LABELS),
    Damage("huge header", huge_header, IMAGES + LABELS),
    Damage(OTHER_FORMAT, other_format, IMAGES + LABELS),
    Damage("wrong type", wrong_type, STRUCTURED),
    Damage("absurd number", absurd_number, STRUCTURED),
    Damage("path that leaves", absurd_name, STRUCTURED),
    Damage("deep nesting", deep, (".json", ".jsonl")),
    Damage("key missing", missing_key, STRUCTURED, hides_in=STRUCTURED),
    Damage("entry repeated", repeated, STRUCTURED, hides_in=STRUCTURED),
    Damage("entry left out", left_out, STRUCTURED, hides_in=STRUCTURED),
    Damage("long text", long_text, STRUCTURED, hides_in=STRUCTURED),
    Damage("lines", lines, TEXTS, hides_in=TEXTS),
)


def damages_for(path: Path) -> list[Damage]:
    """The damages that can be done to a file of this kind."""
    return [one for one in DAMAGES if not one.suffixes or path.suffix.lower() in one.suffixes]
