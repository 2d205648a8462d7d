"""Own semantic data with mistakes: each is named, with the cure."""

import re

import numpy as np
import pytest
from PIL import Image

from model.errors import UserError
from tests.utils.data.datasets.test_own_sem import training, write
from tests.utils.data.layouts import blocks, save, seeded_image
from utils.data.registry import build_val_dataset
from utils.data.types import UnusableItemError


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ("", "classes.txt: no classes; write one per line"),
        ("ignore\n", "classes.txt: no classes"),
        ("bolt\nnut\nBolt \n", "classes 'bolt' and 'Bolt' have the same name; make them differ"),
        ("bolt\n\nnut\n", "line 2: '' names no class for label value 1; write 'ignore' or 'nothing'"),
        ("# mine\nbolt\n", "line 1: '# mine' names no class for label value 0"),
    ],
)
def test_class_lists_that_make_no_sense_are_refused(tmp_path, classes, message):
    with pytest.raises(ValueError, match=message):
        training(write(tmp_path, [blocks([0])], classes=classes))


def test_a_class_called_background_is_pointed_out(tmp_path, caplog):
    training(write(tmp_path, [blocks([1])], classes="background\nbolt\n"))
    assert "'background' is asked for like any other class; write 'nothing' if it is not one" in caplog.text


@pytest.mark.parametrize("high", [255, 65535])
def test_masks_of_0_and_255_are_refused_with_the_cure(tmp_path, high):
    """The thing would be ignored, and taught as absent."""
    masks = [blocks([0, high]), blocks([0, high, 0]), blocks([0, 0])]
    message = rf"only values of the labels are 0 and {high}, as in .*0\.png: no pixel has a class.* save"
    with pytest.raises(UserError, match=message):
        training(write(tmp_path, masks, classes="nothing\nball\n"))


def test_masks_of_0_and_255_are_pointed_out_where_0_is_a_class(tmp_path, caplog):
    training(write(tmp_path, [blocks([0, 255])], classes="ball\nbox\n"))
    assert "the only values of the labels are 0 and 255" in caplog.text
    assert "if it marks an object, save the object as the number of its line" in caplog.text
    caplog.clear()
    training(write(tmp_path, [blocks([0, 1, 255])], classes="nothing\nball\n"))
    listed = "nothing\n" + "".join(f"part {number}\n" for number in range(1, 256))
    training(write(tmp_path, [blocks([0, 255])], classes=listed))
    assert not caplog.text


def test_nothing_is_ruled_out_where_255_stands_alone(tmp_path, recipe):
    """However small it is: the borders that annotators ignore lie around objects."""
    label = blocks([0])
    label[5:8, 5:8] = 255
    dataset = training(write(tmp_path, [label, blocks([0, 1])], classes="nothing\nball\nbox\n"))
    assert dataset[0].absent == ()
    assert dataset[1].absent == (1,)
    with pytest.raises(UnusableItemError, match="masks of 0 and 255 must be masks of 0 and 1"):
        dataset.sample_of(0, np.random.default_rng(0), recipe)


def test_of_many_unknown_values_a_few_are_named(tmp_path):
    label = np.arange(24 * 32).astype(np.uint8).reshape(24, 32)
    with pytest.raises(UnusableItemError, match=r"label values \[5, 6, .*, 14\] and 240 more are not in"):
        training(write(tmp_path, [label]))[0]


def test_a_missing_class_list_says_how_to_write_one(tmp_path):
    data = write(tmp_path, [blocks([1])])
    (data / "classes.txt").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"my_data/classes.txt does not exist; write one class name per line"
    ):
        training(data)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (
            blocks([1, 9]),
            r"label values \[9\] are not in .*; value n is line n, .*classes.txt; add lines, or correct",
        ),
        (blocks([1], 10, 12), r"label is \(10, 12\), its image \(24, 32\)"),
        (
            seeded_image(0),
            "a label holds one number a pixel, this one is RGB; save class numbers, not colours",
        ),
    ],
)
def test_labels_that_cannot_be_used_are_named(tmp_path, recipe, label, message):
    data = write(tmp_path, [blocks([1])])
    path = save(data / "labels/0.png", label)
    with pytest.raises(UnusableItemError, match=message) as caught:
        training(data).draw(np.random.default_rng(0), recipe)
    assert caught.value.path == str(path)


@pytest.mark.parametrize("spoil", ["truncated", "zero bytes"])
def test_broken_files_are_named(tmp_path, recipe, spoil):
    data = write(tmp_path, [blocks([1])])
    path = data / ("images/0.png" if spoil == "truncated" else "labels/0.png")
    path.write_bytes(path.read_bytes()[:300] if spoil == "truncated" else b"")
    with pytest.raises(UnusableItemError, match="cannot be decoded") as caught:
        training(data).draw(np.random.default_rng(0), recipe)
    assert caught.value.path == str(path)


def test_images_and_labels_that_miss_the_other_are_dropped_and_counted(tmp_path, caplog):
    data = write(tmp_path, [blocks([1])] * 3)
    (data / "labels/0.png").unlink()
    (data / "images/2.png").unlink()
    dataset = training(data)
    assert len(dataset) == 1
    assert any("0.png: no label 0.png in" in reason for reason in dataset.dropped)
    assert any(f"2.png: no image 2.* in {data}/images" in reason for reason in dataset.dropped)
    assert "2 items dropped, 1 left" in caplog.text


def test_missing_folders_are_named(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"own_sem:.*my_data needs .*my_data; there is neither a file nor a folder"
    ):
        training(tmp_path / "my_data")
    data = write(tmp_path, [])
    save(data / "images/1.png", seeded_image(1))
    with pytest.raises(
        FileNotFoundError, match=r"needs the folder .*my_data/labels; .*holds classes.txt, images"
    ):
        training(data)


def test_labels_named_after_the_whole_file_name_are_paired(tmp_path, caplog):
    data = write(tmp_path, [blocks([1, 2])] * 2)
    for path in sorted((data / "labels").iterdir()):
        image = next((data / "images").glob(f"{path.stem}.*"))
        path.rename(path.with_name(f"{image.name}.png"))
    assert len(build_val_dataset(f"own_sem:{data}", ".")) == 2
    assert "labels named like the image with its suffix" in caplog.text


@pytest.mark.parametrize("name", ["{}_mask.png", "{}.npy"])
def test_a_file_that_nearly_is_the_label_is_named(tmp_path, name):
    data = write(tmp_path, [blocks([1, 2])])
    (label,) = (data / "labels").iterdir()
    label.rename(label.with_name(name.format(label.stem)))
    with pytest.raises(
        FileNotFoundError, match=re.escape(f"{name.format(label.stem)} is there, but a label is")
    ):
        build_val_dataset(f"own_sem:{data}", ".")


@pytest.mark.parametrize("suffix", [".tif", ".png"])
def test_a_label_of_several_images_is_refused(tmp_path, suffix):
    data = write(tmp_path, [blocks([1, 2])])
    (label,) = (data / "labels").iterdir()
    first, second = (Image.fromarray(blocks(values)) for values in ([1, 2], [2, 1]))
    label.unlink()
    first.save(label.with_suffix(suffix), save_all=True, append_images=[second])
    with pytest.raises(ValueError, match="holds several images, and a label is one"):
        build_val_dataset(f"own_sem:{data}", ".")[0]
