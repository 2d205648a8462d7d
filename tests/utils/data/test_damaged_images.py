"""Files that are no image, or no whole one: a skip or one clear error, whatever the decoder raises."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from model.errors import UserError
from tests.utils.data.layouts import save, seeded_image
from tests.utils.data.test_image_depths import write_png
from utils.data.images import read_image, read_label

FORMATS = (
    "PNG",
    "JPEG",
    "WEBP",
    "TIFF",
    "GIF",
    "BMP",
    "PPM",
    "AVIF",
    "JPEG2000",
)
OTHERS = ("TGA", "ICO", "QOI", "PCX", "SGI", "DDS", "ICNS", "PDF", "EPS", "SPIDER")
EXIF = Image.Exif()
EXIF[0x0112], EXIF[0x010E] = 6, "a description " * 5


def whole(format, seed=0):
    file = io.BytesIO()
    options = {"exif": EXIF} if format in ("PNG", "JPEG", "WEBP", "TIFF") else {}
    Image.fromarray(seeded_image(seed)).save(file, format=format, **options)
    return file.getvalue()


def read_or_refuse(path):
    """Read a file both ways: what comes out is an image or a UserError that names it, and nothing else."""
    outcomes, message = [], f"{path}: "
    for read in (read_image, read_label):
        try:
            pixels = read(path)
        except UserError as problem:
            message = str(problem)
            outcomes.append(False)
        else:
            assert pixels.dtype in (np.uint8, np.uint16)
            assert pixels.shape[2:] == ((3,) if read is read_image else ())
            outcomes.append(True)
        assert message.startswith(f"{path}: ")
        assert "\n" not in message
    return outcomes


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("format", FORMATS)
def test_no_damage_gives_a_traceback(tmp_path, format, capfd):
    content = whole(format)
    rng = np.random.default_rng(len(format))
    path = tmp_path / f"a.{format.lower()}"
    path.write_bytes(content)
    assert read_or_refuse(path)[0]
    refused = 0
    for trial in range(40):
        damaged = np.frombuffer(content, dtype=np.uint8).copy()
        if trial % 2:  # bytes in the header, where sizes, offsets and kinds are
            damaged[rng.integers(4, min(len(damaged), 250), 6)] = rng.integers(0, 256, 6)
        else:
            damaged = damaged[: rng.integers(1, len(damaged))]
        path.write_bytes(damaged.tobytes())
        refused += not read_or_refuse(path)[0]
    assert refused


@pytest.mark.parametrize("format", OTHERS)
def test_a_sound_file_of_another_format_is_refused_whatever_it_is_called(tmp_path, format):
    (tmp_path / "a.png").write_bytes(whole(format))
    for read in (read_image, read_label):
        with pytest.raises(UserError, match=r"a\.png: cannot be decoded \(the file is (a|not an|PostScript)"):
            read(tmp_path / "a.png")


@pytest.mark.parametrize("format", ["PNG", "WEBP", "JPEG", "TIFF"])
def test_a_damaged_exif_block_is_an_error_that_names_the_file(tmp_path, format):
    content = whole(format)
    path = tmp_path / "a.img"
    place = content.index(b"a description")
    for start in range(place - 60, place, 3):
        path.write_bytes(content[:start] + b"\xff\xfe\xfd" + content[start + 3 :])
        read_or_refuse(path)
    if format in ("PNG", "WEBP"):  # the case that was seen: no TIFF header in the block
        file = io.BytesIO()
        Image.fromarray(seeded_image(0)).save(file, format=format, exif=b"Exif\0\0not a TIFF header")
        path.write_bytes(file.getvalue())
        with pytest.raises(UserError, match=r"a\.img: cannot be decoded \(not a TIFF file"):
            read_image(path)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "the file is empty"),
        (bytes(1000), "holds only zeros"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "is a web page"),
        (b"\n <HTML>not found</HTML>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", "is a Git LFS pointer"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "is XML or SVG"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "is a HEIC image"),
        (b"a,b\n1,2\n", "is not an image"),
        (b"\0\x05\x16\x07\0\x02\0\0Mac OS X        ", "is not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is not an image"),
    ],
)
def test_files_that_are_no_image_are_called_what_they_are(tmp_path, content, what):
    for name in ("a.jpg", "a.png", "a.tif"):
        (tmp_path / name).write_bytes(content)
        for read in (read_image, read_label):
            with pytest.raises(UserError, match=f"{name}: cannot be decoded .*{what}"):
                read(tmp_path / name)


def test_a_wrong_suffix_does_not_matter(tmp_path):
    (tmp_path / "a.jpg").write_bytes(whole("PNG"))
    assert read_image(tmp_path / "a.jpg").shape == (32, 24, 3), "turned, as its EXIF block says"


def test_huge_declared_sizes_are_refused_before_memory_is_taken(tmp_path):
    """Decompression bombs: a few bytes that declare 10^10 pixels."""
    path = write_png(tmp_path / "a.png", np.zeros((1, 1), dtype=int), 1)
    content = bytearray(path.read_bytes())
    content[16:24] = struct.pack(">II", 100_000, 100_000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    path.write_bytes(content)
    bitmap = bytearray(whole("BMP"))
    bitmap[18:26] = struct.pack("<ii", 2**31 - 1, 2**31 - 1)
    (tmp_path / "b.bmp").write_bytes(bitmap)
    (tmp_path / "c.ppm").write_bytes(b"P6 99999 99999 255\n")
    for name in ("a.png", "b.bmp", "c.ppm"):
        for read in (read_image, read_label):
            with pytest.raises(
                UserError, match=rf"{name}: [\d,]+ pixels, of at most [\d,]+; make it smaller"
            ):
                read(tmp_path / name)


def test_pipes_devices_and_folders_are_no_images(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    (tmp_path / "b.png").mkdir()
    for path in (tmp_path / "a.png", tmp_path / "b.png", "/dev/zero"):
        for read in (read_image, read_label):
            with pytest.raises(UserError, match="not a file"):
                read(path)
    save(tmp_path / "c.png", seeded_image(0))
    (tmp_path / "d.png").symlink_to(tmp_path / "c.png")
    assert np.array_equal(read_image(tmp_path / "d.png"), seeded_image(0))
