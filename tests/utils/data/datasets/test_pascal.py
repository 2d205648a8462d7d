import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from tests.utils.data.layouts import blocks, save, seeded_image
from utils.common.label_values import IGNORE
from utils.data.datasets.pascal_context import Pc59, Pc459, read_label_map
from utils.data.datasets.pascal_voc import Pas20
from utils.data.types import UnusableItemError
from utils.evaluation.metrics import ConfusionMatrix


def write_list(root, path, names):
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text("\n".join(names))


def write_voc(root, labels):
    for index, label in enumerate(labels):
        save(root / f"VOCdevkit/VOC2012/JPEGImages/{index}.jpg", seeded_image(index, *label.shape))
        path = root / f"VOCdevkit/VOC2012/SegmentationClass/{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        palette = Image.fromarray(label)
        palette.putpalette(list(range(256)) * 3)
        palette.save(path)
    names = [str(index) for index in range(len(labels))]
    write_list(root, "VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt", names)


def write_context(root, name, label, year="VOCdevkit/VOC2010"):
    save(root / year / f"JPEGImages/{name}.jpg", seeded_image(1, *label.shape))
    write_list(root / year, "ImageSets/SegmentationContext/val.txt", [name])


def test_palette_values_of_voc(tmp_path):
    write_voc(tmp_path, [blocks([0, 1, 20, 255]), blocks([0, 21])])
    data = Pas20(tmp_path, "val")
    assert np.array_equal(data[0].label, blocks([IGNORE, 0, 19, IGNORE]))
    with pytest.raises(UnusableItemError, match=r"1.png: label values \[21\] are not in pas20's class list"):
        data[1]


def test_values_of_pascal_context(tmp_path):
    write_context(tmp_path, "a", blocks([0, 1, 59]))
    save(tmp_path / "VOCdevkit/VOC2010/SegmentationClassContext/a.png", blocks([0, 1, 59]))
    assert np.array_equal(Pc59(tmp_path, "val")[0].label, blocks([IGNORE, 0, 58]))


def test_all_459_classes_fit_into_a_label_map(tmp_path):
    """459 stripes, from a MATLAB file and from a 16-bit image of numbers that are one less."""
    values = np.arange(460, dtype=np.uint16)[None].repeat(3, 0)
    expected = np.where(values == 0, IGNORE, values.astype(int) - 1)
    write_context(tmp_path, "a", values)
    root = tmp_path / "VOCdevkit/VOC2010"
    (root / "trainval").mkdir()
    savemat(root / "trainval/a.mat", {"LabelMap": values})
    sample = Pc459(tmp_path, "val")[0]
    assert np.array_equal(sample.label, expected)
    (root / "trainval").rename(root / "elsewhere")
    (root / "annotations_detectron2/pc459_val").mkdir(parents=True)
    tif = root / "annotations_detectron2/pc459_val/a.tif"
    Image.fromarray(values - np.uint16(1)).save(tif)  # 0 becomes 65535
    again = Pc459(tmp_path, "val")[0]
    assert np.array_equal(again.label, expected)
    matrix = ConfusionMatrix(len(again.classes))
    matrix.add(again.label, np.where(expected == IGNORE, 7, expected))
    assert matrix.summary() == {
        "miou": 1, "mean_accuracy": 1, "pixel_accuracy": 1, "num_classes_counted": 459,
    }  # fmt: skip
    Image.fromarray(np.full_like(values, 459)).save(tif)
    with pytest.raises(UnusableItemError, match=r"a.tif: label values \[459\] are not in pc459's class list"):
        Pc459(tmp_path, "val")[0]


@pytest.mark.parametrize("year", ["VOC2010", "vlpart/pascal_part/VOCdevkit/VOC2010"])
def test_the_images_of_pascal_part_will_do(tmp_path, year):
    write_context(tmp_path, "a", blocks([1]), year)
    save(tmp_path / year / "SegmentationClassContext/a.png", blocks([1]))
    assert Pc59(tmp_path, "val").pairs[0][0] == tmp_path / year / "JPEGImages/a.jpg"


def test_matlab_files_that_hold_no_label_map_are_named(tmp_path):
    for name, content in {
        "none": {"other": np.zeros((2, 2))},
        "text": {"LabelMap": "words"},
        "cell": {"LabelMap": np.array([[{}]], dtype=object)},
        "half": {"LabelMap": np.full((2, 2), 0.5)},
        "negative": {"LabelMap": np.full((2, 2), -1)},
    }.items():
        savemat(tmp_path / f"{name}.mat", content)
        with pytest.raises(ValueError, match=rf"{name}.mat: (LabelMap )?holds"):
            read_label_map(tmp_path / f"{name}.mat")
    savemat(tmp_path / "good.mat", {"LabelMap": np.full((2, 3), 459.0)})
    assert np.array_equal(read_label_map(tmp_path / "good.mat"), np.full((2, 3), 459))
    good = (tmp_path / "good.mat").read_bytes()
    for content in (b"", b"MATLAB 5.0", b"x" * 500, good[:150], good[:-8], good[:128] + b"\xff" * 60):
        (tmp_path / "bad.mat").write_bytes(content)
        with pytest.raises(ValueError, match=r"bad.mat: not a readable MATLAB file|bad.mat: holds no"):
            read_label_map(tmp_path / "bad.mat")


def test_what_is_listed_but_not_there_is_dropped_and_what_is_missing_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"pas20 needs .*VOC2012/SegmentationClass or "):
        Pas20(tmp_path, "val")
    write_voc(tmp_path, [blocks([1]), blocks([2]), blocks([3])])
    root = tmp_path / "VOCdevkit/VOC2012"
    (root / "JPEGImages/0.jpg").unlink()
    (root / "SegmentationClass/1.png").unlink()
    data = Pas20(tmp_path, "val")
    assert len(data) == 1
    assert "0.jpg: not there" in data.dropped[0]
    assert "1.jpg: no label 1.png" in data.dropped[1]
    (root / "ImageSets/Segmentation/val.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"pas20 needs .*val.txt"):
        Pas20(tmp_path, "val")
    with pytest.raises(ValueError, match=r"pas20 has no split 'train'; known: val"):
        Pas20(tmp_path, "train")


def test_a_converted_label_map_of_eight_bits_is_refused(tmp_path):
    path = tmp_path / "a.tif"
    save(path, np.full((4, 6), 7, dtype=np.uint8))
    with pytest.raises(ValueError, match="8 bits a pixel"):
        object.__new__(Pc459).read_values(path)
