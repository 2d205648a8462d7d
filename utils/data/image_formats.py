"""Which image formats are opened: one list, for every command and the server, whatever a file is called.

Each `Image.open` of this program names its formats, so that no other decoder of Pillow ever sees a file.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from functools import wraps
from typing import IO, Any, cast

from PIL import Image, TiffImagePlugin

# It would be told in two lines for images of 90 to 100 million pixels, which are read: MAX_PIXELS of images.py.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
_FORMAT_OF = Image.registered_extensions()  # suffix -> format; imports all of Pillow's plugins
# Stored pixels, whose decoders say how large an image is before they decode it. Not among them: EPS, for which Pillow
# would run Ghostscript, an external program; icons, whose inner images it decodes first; and rare ones.
FORMATS = tuple(
    name
    for name in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")
    if name in Image.OPEN  # a build of Pillow may lack some
)
IMAGE_SUFFIXES = tuple(sorted(suffix for suffix, name in _FORMAT_OF.items() if name in (*FORMATS, "MPO")))
LABEL_SUFFIXES = (".png", ".tif", ".tiff", ".bmp")
LABEL_FORMATS = ("PNG", "TIFF", "BMP")
UNFIT_FORMATS = {  # format that cannot hold class numbers -> why
    **dict.fromkeys(("JPEG", "MPO", "WEBP", "AVIF", "JPEG2000"), "its compression is lossy"),
    "GIF": "programs renumber its colours when they save it",
}
UNFIT_SUFFIXES = {suffix: UNFIT_FORMATS[name] for suffix, name in _FORMAT_OF.items() if name in UNFIT_FORMATS}
KINDS = {  # how files begin that are images for other programs -> what they are
    b"8BPS": "a Photoshop file",
    b"%!PS": "PostScript, which is a program and is not an image",
    b"\xc5\xd0\xd3\xc6": "PostScript, which is a program and is not an image",
    b"%PDF": "a PDF",
    b"\0\0\1\0": "a Windows icon",
    b"\0\0\2\0": "a Windows cursor",
    b"icns": "an Apple icon",
    b"DDS ": "a texture",
    b"SIMPLE  =": "a FITS file",
    b"\x76\x2f\x31\x01": "an OpenEXR file",
}


def what_it_is(start: bytes) -> str:
    """What a file is that no decoder recognises, from its first bytes."""
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not start:
        return "the file is empty"
    if text.startswith(b"version https://git-lfs"):
        return "the file is a Git LFS pointer; fetch the image itself with git lfs pull"
    if text.startswith((b"<!doctype html", b"<html")):
        return "the file is a web page; download the image itself"
    if text.startswith((b"<svg", b"<?xml")):
        return "the file is XML or SVG; save it as PNG"
    if start[4:8] == b"ftyp":
        return "the file is a HEIC image or a video, which are not supported; save it as JPEG or PNG"
    if not start.strip(b"\0"):
        return "the file holds only zeros"
    kind = next((what for begin, what in KINDS.items() if start.startswith(begin)), "")
    return (
        f"the file is {kind}; save it as PNG" if kind else f"the file is not an image of {', '.join(FORMATS)}"
    )


def unfit_label(kind: str, reason: str) -> str:
    """For messages: why a label image of a format is refused."""
    return f"a label as {kind} cannot hold class numbers, as {reason}; save labels as PNG"


class _Metered:
    """A file for a directory of TIFF tags, which EXIF blocks are too: what is read of it is limited.

    Its 65,535 tags may all lead to the same ten megabytes, and Pillow keeps a copy for each.
    """

    def __init__(self, file: IO[bytes]) -> None:
        place = file.tell()
        self._left = 2 * file.seek(0, io.SEEK_END) + 2**20
        file.seek(place)
        self.seek, self.tell, self._file = file.seek, file.tell, file

    def read(self, size: int = -1) -> bytes:
        content = self._file.read(size)
        self._left -= len(content)
        if self._left < 0:
            raise ValueError("its tags hold more than the file")
        return content


def _limited(load: Callable[[Any, IO[bytes]], None]) -> Callable[[Any, IO[bytes]], None]:
    @wraps(load)
    def load_metered(directory: Any, file: IO[bytes]) -> None:
        load(directory, cast(IO[bytes], _Metered(file)))

    return load_metered


# In Pillow itself: it reads such directories while it opens a TIFF, an AVIF or a JPEG, before anybody could look.
TiffImagePlugin.ImageFileDirectory_v2.load = _limited(TiffImagePlugin.ImageFileDirectory_v2.load)  # type: ignore[assignment,method-assign]
