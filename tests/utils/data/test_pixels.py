"""The limit of an image's pixels."""

import io
import time

import pytest
from PIL import Image

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


def test_a_server_reads_no_icon_whose_inner_image_pillow_would_decode_first():
    file = io.BytesIO()
    Image.new("RGB", (32, 32)).save(file, "ICO")
    assert images.image_of_bytes(file.getvalue(), "the image").shape == (32, 32, 3)
    with pytest.raises(UserError, match="the image: cannot be decoded"):
        images.image_of_bytes(file.getvalue(), "the image", 1000, images.WEB_FORMATS)
