"""What is in a folder of images: hidden files are no data, and nothing is skipped without a log line."""

import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from model.errors import UserError
from tests.utils.data.datasets.test_own_sem import training, write
from tests.utils.data.layouts import blocks, save, seeded_image, write_ade20k, write_cityscapes
from utils.data.datasets.cityscapes import Cityscapes
from utils.data.datasets.reason_seg import ReasonSeg
from utils.data.image_formats import IMAGE_SUFFIXES, LABEL_SUFFIXES
from utils.data.images import images_in
from utils.data.registry import build_val_dataset
from utils.evaluation.predict import find_images

HIDDEN = (".DS_Store", "Thumbs.db", "THUMBS.DB", "desktop.ini", ".hidden.png")
CLASSES = "ignore\nbolt\nnut\nnothing\nrust\n"


def litter(folder):
    """What macOS and Windows leave in a folder: AppleDouble beside every file, and files and folders of their own."""
    for path in list(folder.iterdir()):
        path.with_name(f"._{path.name}").write_bytes(b"\0\x05\x16\x07\0\x02\0\0Mac OS X        ")
    for name in HIDDEN:
        (folder / name).write_bytes(b"\0")
    for name in ("__MACOSX", ".Trashes", "@eaDir"):
        shutil.copytree(
            folder, folder / name, ignore=shutil.ignore_patterns("__MACOSX", ".Trashes", "@eaDir")
        )


def test_hidden_files_of_own_data_are_no_data(tmp_path, caplog):
    data = write(tmp_path, [blocks([1, 2])] * 3, classes=CLASSES)
    litter(data / "images")
    litter(data / "labels")
    dataset = training(data)
    assert len(dataset) == 3
    assert not dataset.dropped
    assert not caplog.text


def test_hidden_files_of_published_data_are_no_data(tmp_path):
    write_ade20k(tmp_path, [blocks([1, 2])] * 2)
    write_cityscapes(tmp_path, [blocks([7, 8])] * 2)
    folder = tmp_path / "reason_seg/ReasonSeg/val"
    for number in range(2):
        save(folder / f"{number}.jpg", seeded_image(number))
        shape = {"label": "target", "points": [[1, 1], [9, 1], [9, 9]]}
        (folder / f"{number}.json").write_text(
            json.dumps({"text": ["where?"], "is_sentence": True, "shapes": [shape]})
        )
    for place in (
        "ade20k/images/training",
        "ade20k/annotations/training",
        "cityscapes/leftImg8bit/train/ulm",
        "cityscapes/gtFine/train/ulm",
        "reason_seg/ReasonSeg/val",
    ):
        litter(tmp_path / place)
    litter(tmp_path / "cityscapes/leftImg8bit/train")
    for dataset in (
        build_val_dataset("ade20k|train", tmp_path),
        Cityscapes(tmp_path, "train"),
        ReasonSeg(tmp_path, "val"),
    ):
        assert len(dataset) == 2
        assert not dataset.dropped
        assert all(dataset[index].image.size for index in range(2))


def test_hidden_files_of_a_folder_to_predict_are_no_data(tmp_path):
    folder = tmp_path / "photos"
    save(folder / "a.png", seeded_image(0))
    litter(folder)
    for pattern in (folder, f"{folder}/*", f"{folder}/*.png", f"{folder}/**/*", f"{folder}/**"):
        assert find_images(str(pattern)) == [folder / "a.png"]
    assert find_images(f"{folder}/.hidden.png") == [folder / ".hidden.png"], "named by the user"


SUFFIXES = ".jpg .JPG .jpeg .jpe .jfif .gif .bmp .webp .TIF .tiff .ppm .avif .jp2"


@pytest.mark.parametrize("suffix", SUFFIXES.split())
def test_images_of_every_usual_suffix_are_read(tmp_path, suffix):
    data = write(tmp_path, [blocks([1, 2])], classes=CLASSES)
    file = io.BytesIO()
    Image.fromarray(seeded_image(0)).save(file, format=Image.registered_extensions()[suffix.lower()])
    (data / "images/0.png").unlink()
    (data / f"images/0{suffix}").write_bytes(file.getvalue())
    assert training(data)[0].image.shape == (24, 32, 3)
    assert find_images(str(data / "images")) == [data / f"images/0{suffix}"]


def test_only_suffixes_of_the_formats_on_the_list_are_images():
    others = {
        ".eps",
        ".ps",
        ".mpg",
        ".wmf",
        ".h5",
        ".ico",
        ".icns",
        ".psd",
        ".svg",
        ".pdf",
        ".tga",
        ".dds",
        ".fits",
    }
    assert set(SUFFIXES.lower().split()) <= set(IMAGE_SUFFIXES)
    assert not others & set(IMAGE_SUFFIXES)


def test_an_image_of_a_kind_that_is_not_read_is_named(tmp_path, caplog):
    data = write(tmp_path, [blocks([1, 2])] * 2, classes=CLASSES)
    (data / "images/1.png").rename(data / "images/1.heic")
    dataset = training(data)
    assert len(dataset) == 1
    assert dataset.dropped == [f"{data}/images/1.heic: .heic is not a known image format"]
    for name in ("notes.txt", "0.json", "more"):
        (data / "images" / name).mkdir() if name == "more" else (data / "images" / name).write_text("")
    (data / "labels/0.xml").write_text("")
    caplog.clear()
    assert len(training(data).dropped) == 1, "what belongs to no label is no item"
    assert (
        f"{data}/images: 3 entries are not image files and are skipped: 0.json, more, notes.txt"
        in caplog.text
    )
    assert f"{data}/labels: 1 entries are not image files and are skipped: 0.xml" in caplog.text
    caplog.clear()
    assert find_images(str(data / "images")) == [data / "images/0.png"]
    assert "skipped: 0.json, 1.heic, more, notes.txt" in caplog.text


@pytest.mark.parametrize("suffix", [".jpg", ".JPEG", ".jfif", ".webp", ".gif"])
def test_labels_that_cannot_hold_class_numbers_are_refused_with_the_reason(tmp_path, suffix):
    data = write(tmp_path, [blocks([1, 2])], classes=CLASSES)
    (data / "labels/0.png").rename(data / f"labels/0{suffix}")
    with pytest.raises(
        FileNotFoundError, match=rf"labels/0\{suffix}: a label as \{suffix} cannot hold class"
    ):
        training(data)


@pytest.mark.parametrize("suffix", LABEL_SUFFIXES)
def test_labels_without_loss_are_read(tmp_path, suffix):
    data = write(tmp_path, [blocks([1, 2])], classes=CLASSES)
    (data / "labels/0.png").unlink()
    save(data / f"labels/0{suffix}", blocks([1, 2]))
    assert np.array_equal(training(data)[0].label, blocks([1, 2]) - 1)


def test_two_images_of_one_label_are_an_error(tmp_path):
    data = write(tmp_path, [blocks([1, 2])], classes=CLASSES)
    save(data / "images/0.jpg", seeded_image(1))
    with pytest.raises(
        UserError, match=r"0\.jpg and .*0\.png both belong to the label .*0\.png; remove or rename"
    ):
        training(data)
    (data / "images/0.jpg").unlink()
    save(data / "labels/0.tif", blocks([1, 2]))
    with pytest.raises(UserError, match=r"0\.png and .*0\.tif are labels of one image"):
        training(data)


def test_a_folder_is_listed_without_opening_its_files(tmp_path):
    for name in ("b.png", "a.JPG", "c.txt", "._a.JPG"):
        (tmp_path / name).write_bytes(b"")
    images, others = images_in(tmp_path)
    assert [path.name for path in images] == ["a.JPG", "b.png"]
    assert others == [(tmp_path / "c.txt", ".txt is not a known image format")]


def test_images_and_labels_pair_in_any_form_of_unicode(tmp_path):
    """macOS writes \u00e9 as two characters, others as one."""
    data = write(tmp_path, [blocks([1, 2])], classes=CLASSES)
    (data / "images/0.png").rename(data / "images/caf\u00e9.png")
    (data / "labels/0.png").rename(data / "labels/cafe\u0301.png")
    assert len(training(data)) == 1
    assert not training(data).dropped


def test_a_lossy_copy_beside_a_label_is_named(tmp_path, caplog):
    data = write(tmp_path, [blocks([1, 2])], classes=CLASSES)
    save(data / "labels/0.jpg", seeded_image(0))
    assert len(training(data)) == 1
    assert f"{data}/labels: 1 entries are not labels and are skipped: 0.jpg" in caplog.text
