"""Bit depths and value ranges: labels are the numbers in the file, images use the range that they need."""

import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from model.errors import UserError
from tests.utils.data.layouts import save, seeded_image
from utils.data.images import read_image, read_label, to_eight_bits

GREY, PALETTE = 0, 3  # colour types of PNG
VALUES = np.array([[0, 1, 2, 3], [3, 2, 1, 0]])


def packed(row, num_bits):
    text = "".join(format(value, f"0{num_bits}b") for value in row)
    text += "0" * (-len(text) % 8)
    return int(text, 2).to_bytes(len(text) // 8, "big")


def write_png(path, values, num_bits, colour_type=GREY):
    """A PNG of fewer than 8 bits a pixel, which Pillow reads and does not write."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", values.shape[1], len(values), num_bits, colour_type, 0, 0, 0)
    colours = chunk(b"PLTE", bytes(range(100, 100 + 3 * 2**num_bits))) if colour_type == PALETTE else b""
    pixels = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + packed(row, num_bits) for row in values)))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + colours + pixels + chunk(b"IEND", b""))
    return path


def write_tiff(path, rows, width, *, num_bits, white_is_zero=False, kind=1):
    """A plain TIFF; kind: 1 unsigned, 2 signed, 3 floating point."""
    data = b"".join(rows)
    tags = (
        (256, width),
        (257, len(rows)),
        (258, num_bits),
        (259, 1),
        (262, int(not white_is_zero)),
        (273, 8),
    )
    tags += ((277, 1), (278, len(rows)), (279, len(data)), (339, kind))
    start = 8 + len(data) + len(data) % 2
    table = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", tag, 4, 1, n) for tag, n in tags)
    path.write_bytes(b"II*\0" + struct.pack("<I", start) + data.ljust(start - 8, b"\0") + table + bytes(4))
    return path


@pytest.mark.parametrize("num_bits", [1, 2, 4])
@pytest.mark.parametrize("colour_type", [GREY, PALETTE])
def test_labels_of_few_bits_are_the_numbers_in_the_png(tmp_path, num_bits, colour_type):
    values = np.minimum(VALUES * (5 if num_bits == 4 else 1), 2**num_bits - 1)
    assert np.array_equal(read_label(write_png(tmp_path / "a.png", values, num_bits, colour_type)), values)


@pytest.mark.parametrize("num_bits", [1, 2, 4, 8])
@pytest.mark.parametrize("white_is_zero", [False, True])
def test_labels_of_few_bits_are_the_numbers_in_the_tiff(tmp_path, num_bits, white_is_zero):
    values = np.minimum(VALUES * (5 if num_bits > 2 else 1), 2**num_bits - 1)
    rows = [packed(row, num_bits) for row in values]
    path = write_tiff(tmp_path / "a.tif", rows, 4, num_bits=num_bits, white_is_zero=white_is_zero)
    assert np.array_equal(read_label(path), values)


@pytest.mark.parametrize("dtype", ["<u2", "<i2", "<u4", "<i4", "<f4"])
def test_labels_of_many_bits_are_the_numbers_in_the_tiff(tmp_path, dtype):
    values = (VALUES * 100).astype(dtype)
    path = write_tiff(
        tmp_path / "a.tif",
        [row.tobytes() for row in values],
        4,
        num_bits=8 * values.itemsize,
        kind={"u": 1, "i": 2, "f": 3}[values.dtype.kind],
    )
    label = read_label(path)
    assert label.dtype == np.uint16
    assert np.array_equal(label, values)


@pytest.mark.parametrize(("dtype", "odd"), [("<i4", -1), ("<i4", 65536), ("<f4", 0.5), ("<f4", np.nan)])
def test_numbers_that_no_label_holds_are_refused_not_wrapped(tmp_path, dtype, odd):
    values = VALUES.astype(dtype)
    values[0, 0] = odd
    rows = [row.tobytes() for row in values]
    path = write_tiff(tmp_path / "a.tif", rows, 4, num_bits=32, kind={"i": 2, "f": 3}[values.dtype.kind])
    with pytest.raises(UserError, match=r"a\.tif: a label holds whole numbers from 0 to 65535"):
        read_label(path)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif"])
def test_labels_may_be_any_kind_without_loss(tmp_path, suffix):
    values = (seeded_image(1)[..., 0] % 7).astype(np.uint8)
    assert np.array_equal(read_label(save(tmp_path / f"a{suffix}", values)), values)


@pytest.mark.parametrize("channels", ["RGB", "RGBA", "LA"])
def test_grey_that_is_stored_as_colour_is_a_label(tmp_path, channels):
    values = seeded_image(1)[..., 0] % 7
    opaque = np.full_like(values, 255)
    bands = {"RGB": [values] * 3, "RGBA": [*[values] * 3, opaque], "LA": [values, opaque]}[channels]
    assert np.array_equal(read_label(save(tmp_path / "a.png", np.dstack(bands))), values)
    bands[-1] = seeded_image(2)[..., 0]
    with pytest.raises(UserError, match=f"holds one number a pixel, this one is {channels}"):
        read_label(save(tmp_path / "b.png", np.dstack(bands)))


@pytest.mark.parametrize(
    ("name", "format", "options"),
    [
        ("a.jpg", "JPEG", {}),
        ("a.png", "JPEG", {}),  # its suffix lies
        ("a.webp", "WEBP", {"lossless": True}),
        ("a.gif", "GIF", {}),
        ("a.tif", "TIFF", {"compression": "jpeg"}),
    ],
)
def test_labels_of_kinds_that_cannot_hold_class_numbers_are_refused(tmp_path, name, format, options):
    Image.fromarray(seeded_image(1)[..., 0]).save(tmp_path / name, format=format, **options)
    with pytest.raises(UserError, match=f"a label as {format}.* cannot hold class numbers"):
        read_label(tmp_path / name)


# -------------------------------------------------------------------------------------------- images


@pytest.mark.parametrize("num_bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("is_colour", [False, True])
def test_an_image_uses_the_range_of_its_camera(tmp_path, num_bits, suffix, is_colour):
    largest = 2**num_bits - 1
    ramp = np.linspace(0, largest, 24 * 32).round().astype(np.uint16).reshape(24, 32)
    stored = np.dstack([ramp, ramp[::-1], ramp[:, ::-1]]) if is_colour else ramp
    cv2.imwrite(str(tmp_path / f"a{suffix}"), stored[..., ::-1] if is_colour else stored)
    expected = np.round(stored * (255 / largest)).astype(int)
    expected = expected if is_colour else np.repeat(expected[..., None], 3, axis=2)
    assert np.abs(read_image(tmp_path / f"a{suffix}") - expected).max() <= 1


def test_ranges_are_those_of_whole_bit_depths():
    assert to_eight_bits(np.array([0, 255], np.uint16)).tolist() == [0, 255]
    assert to_eight_bits(np.array([0, 1], np.uint16)).tolist() == [0, 1]
    assert to_eight_bits(np.array([0, 256, 1023], np.uint16)).tolist() == [0, 64, 255]
    assert to_eight_bits(np.array([2048, 4095], np.int32)).tolist() == [128, 255]
    assert to_eight_bits(np.array([257, 65535], np.uint16)).tolist() == [1, 255]


@pytest.mark.parametrize("num_bits", [1, 2, 4])
def test_images_of_few_bits_go_from_black_to_white(tmp_path, num_bits):
    values = np.array([[0, 2**num_bits - 1]])
    image = read_image(write_png(tmp_path / "a.png", values, num_bits))
    assert image[0, :, 0].tolist() == [0, 255]


def test_transparent_sixteen_bit_colour_shows_white(tmp_path):
    pixels = np.zeros((4, 6, 4), dtype=np.uint16)
    pixels[:, 3:] = (0, 0, 4095, 65535)  # blue, green, red, alpha
    cv2.imwrite(str(tmp_path / "a.png"), pixels)
    image = read_image(tmp_path / "a.png")
    assert (image[:, :3] == 255).all()
    assert (image[:, 3:] == (255, 0, 0)).all()


def test_thirty_two_bit_images_use_their_range_or_are_refused(tmp_path):
    for largest, message in ((4095, ""), (70000, "from 0 to 70000 have no defined range")):
        values = np.array([[0, largest]], dtype="<i4")
        path = write_tiff(tmp_path / "a.tif", [values.tobytes()], 2, num_bits=32, kind=2)
        if message:
            with pytest.raises(UserError, match=message):
                read_image(path)
        else:
            assert read_image(path)[0, :, 0].tolist() == [0, 255]
