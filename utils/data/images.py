"""The reader of all image files: images become uint8 RGB, label images the numbers that they store.

Decoders raise exceptions of many types on damaged files (SyntaxError for an EXIF block, TypeError for a TIFF). Any of
them becomes a UserError naming the file, which callers count and skip.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np
from PIL import ExifTags, Image, ImageFile, TiffImagePlugin, UnidentifiedImageError

from model.errors import UserError
from utils.data import storage
from utils.data.files import is_hidden
from utils.data.image_formats import (
    FORMATS,
    IMAGE_SUFFIXES,
    LABEL_FORMATS,
    UNFIT_FORMATS,
    unfit_label,
    what_it_is,
)

SIXTEEN_BIT_MODES = ("I;16", "I;16B", "I;16L", "I;16N")
SIXTEEN_BIT_COLOUR = re.compile(
    r"(LA|R|RGB|RGBA|RGBX|RGBa);16[BLN]?"
)  # stored modes that Pillow cuts to 8 bits
TO_UPRIGHT = {  # EXIF orientation -> how to turn the stored pixels; 1 and unknown values: not at all
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
UPRIGHT, AS_STORED = "upright", "as stored"  # how a turned image was taken
BACKGROUND = (255, 255, 255)  # colour behind transparent pixels, as in an image viewer
LARGEST = 65535  # largest number of a label, or of an image of integers
# A PNG of 164 kB can hold 13,000 x 13,000 pixels, and would take several GB in all steps from here to the model.
MAX_PIXELS = 100_000_000
# A progressive JPEG goes over all its pixels once for each scan; encoders write about ten. 20 MB can hold a million.
MAX_SCANS = 500
MAX_SCANNED_PIXELS = 2_000_000_000  # in all scans: 20 scans of the largest image
SCAN = b"\xff\xda"  # begins one
MAX_REASON = 200  # characters of a decoder's own message


def read_image(path: str | Path, label_size: tuple[int, int] | None = None) -> np.ndarray:
    """The image as (height, width, 3) uint8 RGB: EXIF orientation applied, transparent pixels over white.

    Some annotators saw the stored pixels, without the EXIF orientation: when the size (height, width) of the labels
    is given and only the stored image has it, the stored image is returned. Images of more than 8 bits are scaled by
    the number of bits that they need, see `to_eight_bits`. Raises FileNotFoundError, or UserError naming the file
    when it cannot be decoded.
    """
    return read_oriented(path, label_size)[0]


def image_of_bytes(content: bytes, name: str, max_pixels: int | None = None) -> np.ndarray:
    """The image of `read_image` from the content of its file; `name` stands for its path in errors.

    max_pixels: limit of servers, below `MAX_PIXELS`.
    """
    return _oriented(io.BytesIO(content), name, None, max_pixels)[0]


def image_of_pillow(image: Image.Image, name: str) -> np.ndarray:
    """The image of `read_image` from one that Pillow has opened; `name` stands for its path in errors."""
    check_num_pixels(image, name)
    try:
        image.load()
        turn = TO_UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
        return np.array(_to_rgb(image if turn is None else image.transpose(turn), name))
    except UserError:
        raise
    except Exception as problem:  # as in `_decode`
        raise UserError(f"{name}: cannot be decoded ({_reason(problem)})") from None


def read_oriented(path: str | Path, label_size: tuple[int, int] | None = None) -> tuple[np.ndarray, str]:
    """The image of `read_image`, and which frame of a turned image was taken: UPRIGHT or AS_STORED.

    The second is "" for an image without an EXIF orientation.
    """
    with storage.open_file(path) as file:
        return _oriented(file, path, label_size)


def _oriented(
    file: BinaryIO,
    path: str | Path,
    label_size: tuple[int, int] | None,
    max_pixels: int | None = None,
) -> tuple[np.ndarray, str]:
    taken = ""

    def convert(image: Image.Image, stored: str, file: BinaryIO) -> np.ndarray:
        # Not ImageOps.exif_transpose: it writes the EXIF block anew, which fails on many a camera's.
        turn = TO_UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
        if SIXTEEN_BIT_COLOUR.fullmatch(stored):
            image = _from_sixteen_bit_colour(file)
        upright = image if turn is None else image.transpose(turn)
        stored_fits = label_size is not None and image.size == label_size[::-1] != upright.size
        nonlocal taken
        taken = "" if turn is None else AS_STORED if stored_fits else UPRIGHT
        return np.array(_to_rgb(image if stored_fits else upright, path))

    return _decode(file, path, convert, max_pixels), taken


def read_label(path: str | Path) -> np.ndarray:
    """A label image as (height, width) uint8 or uint16: palette indices and grey values as the file stores them.

    Colour with three equal channels is read as grey. Raises FileNotFoundError, or UserError naming the file when it
    cannot be decoded, holds colours or several images, has a lossy compression, or holds numbers beyond 16 bits.
    """

    def convert(image: Image.Image, stored: str, file: BinaryIO) -> np.ndarray:
        if image.format in UNFIT_FORMATS:
            raise UserError(f"{path}: {unfit_label(image.format, UNFIT_FORMATS[image.format])}")
        if image.info.get("compression") in ("jpeg", "webp"):
            raise UserError(f"{path}: {unfit_label('TIFF with JPEG', UNFIT_FORMATS['JPEG'])}")
        if _holds_several(image):
            raise UserError(f"{path}: holds several images, and a label is one; save each as a file")
        if image.format not in LABEL_FORMATS:
            raise UserError(f"{path}: labels are not read from {image.format} files; save them as PNG")
        if image.mode in (*SIXTEEN_BIT_MODES, "I", "F"):
            return _label_numbers(np.asarray(image), path)
        if image.mode in ("1", "L", "P"):
            return _unscaled(np.asarray(image).astype(np.uint8), image.mode, stored)
        values = None if SIXTEEN_BIT_COLOUR.fullmatch(stored) else _equal_channels(image)
        if values is None:
            raise UserError(
                f"{path}: a label holds one number a pixel, this one is {image.mode}; save class numbers, not colours"
            )
        return values

    with storage.open_file(path) as file:
        return _decode(file, path, convert)


def images_in(folder: Path) -> tuple[list[Path], list[tuple[Path, str]]]:
    """The image files of a folder, and its other entries with the reason why they are not images; both sorted.

    Hidden files are in neither list. The folder is listed once, and no file is opened.
    """
    images, others = [], []
    for name, is_folder in sorted(storage.scan(folder)):
        path = folder / name
        if is_hidden(name):
            continue
        if is_folder:
            others.append((path, "is a folder; images are searched only in the folder above"))
        elif path.suffix.lower() in IMAGE_SUFFIXES:
            images.append(path)
        else:
            others.append((path, f"{path.suffix or 'a file without suffix'} is not a known image format"))
    return images, others


def check_num_pixels(image: Image.Image, path: str | Path, max_pixels: int | None = None) -> None:
    """UserError for an opened image, not yet decoded, of more than `max_pixels`, or else `MAX_PIXELS`."""
    if image.width * image.height > (max_pixels or MAX_PIXELS):
        raise UserError(too_large(path, f"{image.width} x {image.height}", max_pixels))


def check_num_scans(file: BinaryIO, path: str | Path, num_pixels: int) -> None:
    """UserError for a JPEG that takes as long to decode as hundreds of others; `file` stays where it is."""
    place = file.tell()
    file.seek(0)
    count = file.read().count(SCAN)
    file.seek(place)
    most = min(MAX_SCANS, MAX_SCANNED_PIXELS // max(num_pixels, 1))
    if count > most:
        size = f" of {num_pixels:,} pixels" if most < MAX_SCANS else ""
        raise UserError(f"{path}: {count:,} scans{size}, of at most {most}; save it again as a JPEG or PNG")


def too_large(path: str | Path, size: str, max_pixels: int | None = None) -> str:
    """For messages: that an image has too many pixels."""
    most = max_pixels or MAX_PIXELS
    return f"{path}: {size} pixels, of at most {most:,}; make it smaller, or cut it into tiles"


def to_eight_bits(values: np.ndarray) -> np.ndarray:
    """Integers from 0 to 65535, of any shape, scaled to uint8 from the 8, 10, 12, 14 or 16 bits that they need.

    File formats do not record how many of the 16 bits a camera uses: values that fit into 12 bits are read as 12
    bits.
    """
    num_bits = max(int(values.max(initial=0)).bit_length(), 8)
    num_bits += num_bits % 2
    scale = (2**num_bits - 1) / 255
    return np.round(np.arange(2**num_bits) / scale).astype(np.uint8)[values]


def _decode(
    file: BinaryIO,
    path: str | Path,
    convert: Callable[[Image.Image, str, BinaryIO], np.ndarray],
    max_pixels: int | None = None,
) -> np.ndarray:
    """The result of `convert` for the loaded image, its stored mode and the file; any failure is a UserError."""
    try:
        image = Image.open(file, formats=FORMATS)
        check_num_pixels(image, path, max_pixels)
        if image.format in ("JPEG", "MPO"):
            check_num_scans(file, path, image.width * image.height)
        stored = _stored_mode(image)
        image.load()
        return convert(image, stored, file)
    except UserError:
        raise
    except Image.DecompressionBombError as problem:  # Pillow's own limit comes first
        found = re.search(r"\d+", str(problem))
        raise UserError(too_large(path, f"{int(found[0]):,}" if found else "too many", max_pixels)) from None
    except UnidentifiedImageError:
        file.seek(0)
        raise UserError(f"{path}: cannot be decoded ({what_it_is(file.read(512))})") from None
    except Exception as problem:  # anything: these are the decoders' own ways to say that a file is damaged
        raise UserError(f"{path}: cannot be decoded ({_reason(problem)})") from None


def _holds_several(image: Image.Image) -> bool:
    """Whether a file holds more than one image. Those of a TIFF are not counted: there may be a million."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return getattr(image, "n_frames", 1) > 1
    try:
        image.seek(1)
    except EOFError:
        return False
    except Exception:  # there is a second one, which is damaged
        return True
    return True


def _reason(problem: Exception) -> str:
    """What a decoder says about a file that it cannot read."""
    return " ".join(str(problem).split())[:MAX_REASON] or type(problem).__name__


def _stored_mode(image: Image.Image) -> str:
    """How the file stores a pixel, as Pillow's raw mode: "L;4", "RGB;16B"; "" if unknown."""
    tiles = image.tile if isinstance(image, ImageFile.ImageFile) else ()
    if not tiles:
        return ""
    arguments = tiles[0][3]
    mode = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return mode if isinstance(mode, str) else ""


def _from_sixteen_bit_colour(file: BinaryIO) -> Image.Image:
    """8-bit RGB or RGBA of a file with 16 bits per channel, of which Pillow would keep the upper eight."""
    file.seek(0)
    content = np.frombuffer(file.read(), dtype=np.uint8)
    pixels = cv2.imdecode(content, cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.ndim != 3 or pixels.dtype != np.uint16:
        raise ValueError("16-bit colour that cannot be read")
    num_colours = 3 if pixels.shape[2] >= 3 else 1
    colours = to_eight_bits(pixels[..., :num_colours][..., ::-1])  # OpenCV's order is blue, green, red
    colours = np.broadcast_to(colours, (*pixels.shape[:2], 3))
    if pixels.shape[2] in (2, 4):
        alpha = (pixels[..., -1:] // 256).astype(np.uint8)
        return Image.fromarray(np.concatenate([colours, alpha], axis=2))
    return Image.fromarray(np.ascontiguousarray(colours))


def _to_rgb(image: Image.Image, path: str | Path) -> Image.Image:
    if image.mode in SIXTEEN_BIT_MODES or image.mode == "I":
        # Pillow's own conversion clips at 255 instead of scaling.
        grey = np.asarray(image)
        low, high = int(grey.min()), int(grey.max())
        if low < 0 or high > LARGEST:
            raise UserError(
                f"{path}: pixels from {low} to {high} have no defined range; save it with 8 or 16 bits"
            )
        image = Image.fromarray(to_eight_bits(grey))
    elif image.mode == "F":
        raise UserError(f"{path}: floating-point pixels have no defined range; save it with 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        canvas = Image.new("RGBA", image.size, (*BACKGROUND, 255))
        image = Image.alpha_composite(canvas, image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _unscaled(values: np.ndarray, mode: str, stored: str) -> np.ndarray:
    """Label values as stored: undoes that Pillow scales grey of 2 and 4 bits, and inverts TIFFs whose 0 is white."""
    depth = re.search(r";(\d+)", stored)
    num_bits = 1 if mode == "1" else int(depth[1]) if depth and mode == "L" else 8
    largest = 2**num_bits - 1
    if mode == "L" and num_bits < 8:
        values = values // (255 // largest)
    is_inverted = mode != "P" and re.fullmatch(r"[1L];\d*IR?", stored)
    return largest - values if is_inverted else values


def _label_numbers(values: np.ndarray, path: str | Path) -> np.ndarray:
    """16-bit, 32-bit and floating-point labels as uint16; UserError for numbers that are not label values."""
    if values.dtype.kind != "u":
        low, high = values.min(), values.max()
        if not (low >= 0 and high <= LARGEST) or not (values == np.floor(values)).all():
            raise UserError(
                f"{path}: a label holds whole numbers from 0 to {LARGEST}, this one {low:g} to {high:g}; save pixels "
                "without a class as 255"
            )
    return values.astype(np.uint16)


def _equal_channels(image: Image.Image) -> np.ndarray | None:
    """(height, width) uint8 of grey that is stored as opaque colour; None for anything else."""
    if image.mode not in ("RGB", "RGBA", "LA"):
        return None
    channels = np.asarray(image)
    if image.mode != "RGB" and (channels[..., -1] != 255).any():
        return None
    colours = channels if image.mode == "RGB" else channels[..., :-1]
    return colours[..., 0].copy() if (colours == colours[..., :1]).all() else None
