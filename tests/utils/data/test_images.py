import numpy as np
import pytest
from PIL import Image, ImageOps

from tests.utils.data.layouts import save, seeded_image
from utils.data.images import read_image, read_label

GREY = np.arange(24 * 32, dtype=np.uint16).reshape(24, 32) * 80


def test_rgb_png_is_returned_as_it_is(tmp_path):
    path = save(tmp_path / "a.png", seeded_image(1))
    assert np.array_equal(read_image(path), seeded_image(1))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / "a.png", seeded_image(1), exif=exif)
    upright = {
        1: lambda p: p,
        2: lambda p: p[:, ::-1],
        3: lambda p: p[::-1, ::-1],
        4: lambda p: p[::-1],
        5: lambda p: p.transpose(1, 0, 2),
        6: lambda p: np.rot90(p, -1),
        7: lambda p: np.rot90(p.transpose(1, 0, 2), 2),
        8: lambda p: np.rot90(p),
    }
    assert np.array_equal(read_image(path), upright[orientation](seeded_image(1)))
    with Image.open(path) as stored:
        assert np.array_equal(read_image(path), np.asarray(ImageOps.exif_transpose(stored)))


def test_labels_drawn_on_the_stored_pixels_get_the_stored_pixels(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = save(tmp_path / "a.png", seeded_image(1), exif=exif)
    assert np.array_equal(read_image(path, label_size=(24, 32)), seeded_image(1))
    assert read_image(path, label_size=(32, 24)).shape == (32, 24, 3)
    assert read_image(path, label_size=(5, 5)).shape == (32, 24, 3)


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    path = save(tmp_path / "a.png", GREY)
    expected = np.round(GREY / 257).astype(np.uint8)
    assert np.array_equal(read_image(path), np.repeat(expected[..., None], 3, axis=2))


def test_grey_and_palette_images_become_rgb(tmp_path):
    grey = seeded_image(1)[..., 0]
    path = save(tmp_path / "a.png", grey)
    assert np.array_equal(read_image(path), np.repeat(grey[..., None], 3, axis=2))
    palette = Image.fromarray(seeded_image(2)).quantize(16)
    palette.save(tmp_path / "p.png")
    assert np.array_equal(read_image(tmp_path / "p.png"), np.asarray(palette.convert("RGB")))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_pixels_show_white(tmp_path, mode):
    pixels = np.zeros((4, 6, len(mode)), dtype=np.uint8)
    pixels[:, 3:, -1] = 255
    path = save(tmp_path / "a.png", pixels)
    image = read_image(path)
    assert (image[:, :3] == 255).all()
    assert (image[:, 3:] == 0).all()


def test_cmyk_jpeg_keeps_its_colours(tmp_path):
    red = Image.new("RGB", (32, 24), (255, 0, 0))
    red.convert("CMYK").save(tmp_path / "a.jpg")
    image = read_image(tmp_path / "a.jpg")
    assert image.shape == (24, 32, 3)
    assert np.abs(image.astype(int) - (255, 0, 0)).max() <= 3


def test_broken_files_give_one_error_that_names_them(tmp_path):
    whole = save(tmp_path / "a.jpg", seeded_image(1, 200, 200)).read_bytes()
    (tmp_path / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.png").write_bytes(b"")
    png = save(tmp_path / "a.png", seeded_image(1)).read_bytes()
    (tmp_path / "broken.png").write_bytes(png[:50] + b"\0" * 40 + png[90:])
    (tmp_path / "text.jpg").write_text("no image")
    for name in ("truncated.jpg", "empty.png", "broken.png", "text.jpg"):
        for read in (read_image, read_label):
            with pytest.raises(ValueError, match=f"{name}: cannot be decoded"):
                read(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"missing\.jpg"):
        read_image(tmp_path / "missing.jpg")


def test_floating_point_images_are_refused(tmp_path):
    path = save(tmp_path / "a.tiff", np.zeros((4, 4), dtype=np.float32))
    with pytest.raises(ValueError, match=r"a\.tiff: floating-point pixels"):
        read_image(path)


def test_labels_keep_palette_indices_and_sixteen_bits(tmp_path):
    values = seeded_image(3)[..., 0] % 7
    palette = Image.fromarray(values, mode="P")
    palette.putpalette([*range(256)] * 3)
    palette.save(tmp_path / "p.png")
    assert np.array_equal(read_label(tmp_path / "p.png"), values)
    assert np.array_equal(read_label(save(tmp_path / "l.png", values)), values)
    assert np.array_equal(read_label(save(tmp_path / "w.png", GREY)), GREY)


def test_a_coloured_label_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"a\.png: a label holds one number a pixel"):
        read_label(save(tmp_path / "a.png", seeded_image(1)))
