"""The limit of an image's pixels."""

import io
import re
import time
import tracemalloc
from contextlib import nullcontext

import pytest
from PIL import Image

from benchmarks import ROOT
from benchmarks.attack import images as attacks
from benchmarks.attack.work import png
from model.errors import UserError
from utils.data import images


@pytest.mark.parametrize("read", [images.read_image, images.read_label])
def test_a_small_file_of_many_pixels_is_refused_before_it_is_decoded(tmp_path, read):
    (tmp_path / "a.png").write_bytes(png(13_000, 13_000))
    assert (tmp_path / "a.png").stat().st_size < 200_000
    started = time.monotonic()
    with pytest.raises(
        UserError, match="13000 x 13000 pixels, of at most 100,000,000; make it smaller, or cut"
    ):
        read(tmp_path / "a.png")
    assert time.monotonic() - started < 1


def test_as_many_pixels_as_allowed_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 1200)
    (tmp_path / "a.png").write_bytes(png(30, 40))
    (tmp_path / "b.png").write_bytes(png(31, 40))
    assert images.read_image(tmp_path / "a.png").shape == (30, 40, 3)
    with pytest.raises(UserError, match="40 x 31 pixels"):
        images.read_image(tmp_path / "b.png")


def progressive(num_more: int) -> bytes:
    """A progressive JPEG, with its last scan so many times more."""
    file = io.BytesIO()
    Image.new("RGB", (64, 48), (200, 10, 30)).save(file, "JPEG", progressive=True)
    content = file.getvalue()
    last = content.rindex(b"\xff\xda")
    return content[:last] + content[last:-2] * (1 + num_more) + content[-2:]


def test_a_jpeg_of_thousands_of_scans_is_refused_and_one_of_many_is_read(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(progressive(100))
    assert images.read_image(path).shape == (48, 64, 3)
    path.write_bytes(progressive(5_000))
    with pytest.raises(
        UserError, match=r"a\.jpg: 5,0\d\d scans, of at most 500; save it again as a JPEG or PNG"
    ):
        images.read_image(path)


def test_the_scans_of_a_large_jpeg_are_fewer(tmp_path, monkeypatch):
    path = tmp_path / "a.jpg"
    path.write_bytes(progressive(100))
    monkeypatch.setattr(images, "MAX_SCANNED_PIXELS", 64 * 48 * 99)
    with pytest.raises(UserError, match=r"1\d\d scans of 3,072 pixels, of at most 99; save it again"):
        images.read_image(path)


def test_an_icon_whose_inner_image_pillow_would_decode_first_is_not_read():
    file = io.BytesIO()
    Image.new("RGB", (32, 32)).save(file, "ICO")
    with pytest.raises(UserError, match=r"the image: cannot be decoded .*a Windows icon; save it as PNG"):
        images.image_of_bytes(file.getvalue(), "the image")


@pytest.mark.parametrize("make", [attacks.tiff_of_tags, attacks.jpeg_of_exif, attacks.png_of_exif])
def test_tags_that_all_lead_to_the_same_bytes_are_read_once(make):
    content = make(1_000_000)  # 65 GB of tags
    tracemalloc.start()
    try:
        # Pillow itself looks at those of a JPEG, and forgives what is wrong with them.
        with (
            nullcontext()
            if make is attacks.jpeg_of_exif
            else pytest.raises(UserError, match="its tags hold more")
        ):
            images.image_of_bytes(content, "the image")
        assert tracemalloc.get_traced_memory()[1] < 50_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("loops", [True, False])
def test_the_images_of_a_tiff_are_not_counted(loops, tmp_path):
    (tmp_path / "a.tif").write_bytes(attacks.tiff_of_directories(50_000, loops=loops))
    started = time.monotonic()
    with pytest.raises(UserError, match=r"a\.tif: holds several images, and a label is one"):
        images.read_label(tmp_path / "a.tif")
    assert time.monotonic() - started < 2
    assert images.read_image(tmp_path / "a.tif").shape == (30, 40, 3)


def test_every_image_is_opened_as_one_of_the_formats_on_the_list():
    """Without a list, Pillow tries all it knows: for PostScript it would run Ghostscript."""
    folders = [path for folder in ("model", "utils") for path in (ROOT / folder).rglob("*.py")]
    for path in [*folders, *ROOT.glob("*.py")]:
        for found in re.finditer(r"Image\.open\((.*)", path.read_text()):
            assert "formats=" in found[1], f"{path}: {found[0]}"
        assert not re.search(r"cv2\.(imread|VideoCapture)|imageio|skimage", path.read_text()), path
