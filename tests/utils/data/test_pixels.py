"""The limit of an image's pixels."""

import time

import pytest

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
