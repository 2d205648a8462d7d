"""Any picture file to uint8 RGB, and label pictures to integer arrays."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from model.errors import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")  # of pictures
SIXTEEN_BIT_MODES = ("I;16", "I;16B", "I;16L", "I;16N")
TO_UPRIGHT = {  # EXIF orientation -> how to turn the stored pixels; 1 and anything unknown: not at all
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
BACKGROUND = (255, 255, 255)  # what shows through transparent pixels, as in a viewer


def read_image(path: str | Path, label_size: tuple[int, int] | None = None) -> np.ndarray:
    """The picture as (height, width, 3) uint8 RGB: EXIF orientation applied, alpha laid over white.

    Some annotators saw the pixels as they are stored, without their EXIF orientation: when the size
    (height, width) of the labels is given and only the unrotated picture has it, that one is returned.
    Raises FileNotFoundError, or ValueError naming the file when it cannot be decoded.
    """
    with _decoded(path) as picture:
        # Not ImageOps.exif_transpose: it writes the EXIF block anew, which fails on many a camera's.
        turn = TO_UPRIGHT.get(picture.getexif().get(ExifTags.Base.Orientation))
        upright = picture if turn is None else picture.transpose(turn)
        stored_fits = label_size is not None and picture.size == label_size[::-1] != upright.size
        return np.array(_to_rgb(picture if stored_fits else upright, path))


def read_label(path: str | Path) -> np.ndarray:
    """A label picture as (height, width) uint8 or uint16: palette indices and grey values as they are stored.

    Raises FileNotFoundError, or ValueError naming the file when it cannot be decoded or holds colours.
    """
    with _decoded(path) as picture:
        if picture.mode in SIXTEEN_BIT_MODES or picture.mode == "I":
            return np.asarray(picture).astype(np.uint16)
        if picture.mode not in ("L", "P", "1"):
            raise UserError(
                f"{path}: a label holds one number a pixel, this one is {picture.mode}; save it as grey"
            )
        return np.asarray(picture).astype(np.uint8)


@contextmanager
def _decoded(path: str | Path) -> Iterator[Image.Image]:
    """The picture with its pixels read; what the decoder raises becomes a ValueError with the file's name."""
    with open(path, "rb") as file:
        try:
            picture = Image.open(file)
            picture.load()
        except UnidentifiedImageError:
            what = "is no picture" if Path(path).stat().st_size else "is empty"
            raise UserError(f"{path}: cannot be decoded (the file {what})") from None
        except (
            OSError,
            SyntaxError,
            ValueError,
            EOFError,
            IndexError,
            Image.DecompressionBombError,
        ) as problem:
            raise UserError(f"{path}: cannot be decoded ({problem})") from None
        yield picture


def _to_rgb(picture: Image.Image, path: str | Path) -> Image.Image:
    if picture.mode in SIXTEEN_BIT_MODES or picture.mode == "I":
        # Pillow's own conversion clips at 255 instead of scaling; 65535 / 257 = 255.
        grey = np.clip(np.asarray(picture), 0, 65535)
        picture = Image.fromarray(np.round(grey / 257).astype(np.uint8))
    elif picture.mode == "F":
        raise UserError(f"{path}: floating-point pixels have no agreed range; save it with 8 or 16 bits")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        canvas = Image.new("RGBA", picture.size, (*BACKGROUND, 255))
        picture = Image.alpha_composite(canvas, picture)
    return picture if picture.mode == "RGB" else picture.convert("RGB")
