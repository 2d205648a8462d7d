"""What the checker points out in data that can be used."""

import numpy as np
import pytest
from PIL import Image

from tests.utils.data.datasets.test_own_coco import BOX, annotation, content
from tests.utils.data.datasets.test_own_coco import write as write_coco
from tests.utils.data.datasets.test_own_sem import write
from tests.utils.data.layouts import blocks, save, seeded_image, write_reason_seg
from utils.data.remarks import is_line
from utils.data.tools import check


@pytest.fixture
def run(monkeypatch, capsys):
    """The check of own data: its exit code and all that it prints, in one line of words."""
    monkeypatch.setenv("COLUMNS", "80")

    def run(entry, *flags):
        code = check.main(["--dataset_dir=.", f"--dataset={entry}", "--num_samples=20", *flags])
        printed = capsys.readouterr()
        return code, " ".join((printed.out + printed.err).split())

    return run


def joined(text):
    """Without white space, since long paths are broken anywhere."""
    return "".join(text.split())


def test_good_data_gets_no_remark(tmp_path, run):
    data = write(tmp_path, [blocks([1, 2]), blocks([3, 4, 255])])
    code, printed = run(f"own_sem:{data}")
    assert code == 0
    for word in ("present", "odd", "palettes", "darker", "thin", "hold only"):
        assert word not in printed


def test_classes_that_are_never_present_are_named(tmp_path, run):
    data = write(tmp_path, [blocks([1])] * 2)
    code, printed = run(f"own_sem:{data}")
    assert code == 0, "a remark is no error"
    seen = "in the 2 images read (--all reads every one)"
    assert f"2 of 3 classes are never present {seen}: 'hex nut', 'rust'" in printed
    assert "2 of 3 classes are never present: 'hex nut', 'rust'" in run(f"own_sem:{data}", "--all")[1]


@pytest.mark.parametrize(
    ("names", "remark"),
    [
        ("sky, tree\n[SEG] box\n0 ball\na_b\n", "odd characters: 'sky, tree', '[SEG] box', '0 ball', 'a_b'"),
        ("caf\u00c3\u00a9\nbox\n", "look garbled: 'caf\u00c3\u00a9'"),
        ("\ufffd\ufffd\nbox\n", "look garbled"),
        ("a\u200bb\nbox\n", "odd characters: 'a\\u200bb'"),
        ("unlabeled\nbox\n", "'unlabeled' is asked for like any other class; write 'ignore' if it is not one"),
        ("traffic light\ncaf\u00e9\n\u5929\u7a7a\nperson's hand\nbus/truck\nT-shirt\n\u0939\u093f\n", ""),
    ],
)  # fmt: skip
def test_names_that_look_wrong_are_named(tmp_path, run, names, remark):
    data = write(tmp_path, [blocks([0, 1])], classes=names)
    printed = run(f"own_sem:{data}")[1]
    assert remark in printed
    assert bool(remark) == any(word in printed for word in ("odd", "garbled", "any other class"))


def test_categories_that_are_probably_no_classes_are_named(tmp_path, run):
    written = content(annotation(5, [BOX]), annotation(10, [BOX]))
    written["categories"][0]["name"] = "Background"
    path = write_coco(tmp_path, written)
    message = "'background' is asked for like any other class; remove the category if it is not one"
    assert message in run(f"own_coco:{path}")[1]


def test_labels_of_0_and_255_are_named(tmp_path, run):
    data = write(tmp_path, [blocks([0, 1]), blocks([0, 255])], classes="road\nball\n")
    printed = run(f"own_sem:{data}", "--all")[1]
    assert "1 of 2 labels hold only 0 and 255" in printed
    assert "if it marks an object, save it as the number of its class" in printed


def test_palettes_that_differ_are_named(tmp_path, run):
    data = write(tmp_path, [blocks([1, 2])] * 2)
    for number, colours in enumerate(([0, 0, 0, 9, 9, 9, 200, 0, 0], [0, 0, 0, 9, 9, 9, 0, 200, 0])):
        label = Image.fromarray(blocks([1, 2]), mode="P")
        label.putpalette(colours)
        label.save(data / f"labels/{number}.png")
    printed = run(f"own_sem:{data}", "--all")[1]
    assert "palettes differ between files: value 2 has the colour (" in printed
    label.save(data / "labels/0.png")
    assert "palettes differ" not in run(f"own_sem:{data}", "--all")[1]


def test_dark_images_are_named(tmp_path, run):
    data = write(tmp_path, [blocks([1, 2])] * 2)
    save(data / "images/1.png", seeded_image(1) // 11)
    printed = run(f"own_sem:{data}", "--all")[1]
    assert "1 of 2 images are darker than a tenth of their range" in printed
    assert joined(f"{data}/images/1.png") in joined(printed)


def test_masks_as_thin_as_a_line_are_named(tmp_path, run):
    label = blocks([3])
    label[3, 2:30] = 1
    label[10:18, 4:12] = 2
    data = write(tmp_path, [label])
    printed = run(f"own_sem:{data}", "--all")[1]
    assert "1 of 2 masks are as thin as a line" in printed
    assert (
        "1 of 2 masks are as thin as a line"
        in run(f"own_sem:{data}", f"--val_dataset_list=own_sem:{data}")[1]
    )


def test_a_line_is_long_and_at_most_two_pixels_wide():
    mask = np.zeros((40, 40), dtype=np.uint8)
    assert not is_line(mask)
    mask[5:7, :] = 1
    assert is_line(mask), "also along the edge of the image"
    mask[5:8, 10:14] = 1
    assert not is_line(mask)
    small = np.zeros((40, 40), dtype=np.uint8)
    small[3:5, 3:9] = 1
    assert not is_line(small), "a small object"
    assert is_line(np.eye(40, dtype=np.uint8))


def test_masks_that_all_lie_in_the_top_left_quarter_are_pointed_out(tmp_path, run):
    label = np.zeros((24, 32), dtype=np.uint8)
    label[2:8, 2:10] = 2
    data = write(tmp_path / "a", [label] * 3, classes="nothing\nsky\nbox\n")
    assert "all 3 masks lie in the top left quarter" in run(f"own_sem:{data}", "--all")[1]
    label[20, 20] = 2
    data = write(tmp_path / "b", [label] * 3, classes="nothing\nsky\nbox\n")
    assert "quarter" not in run(f"own_sem:{data}", "--all")[1]


@pytest.mark.parametrize("names", ["0: sky\n1: box\n", "sky,0\nbox,1\n", "sky 0 0 0\nbox 128 0 0\n"])
def test_ids_and_colours_beside_names_are_pointed_out(tmp_path, run, names):
    data = write(tmp_path, [blocks([0, 1])], classes=names)
    assert "all class names have a number" in run(f"own_sem:{data}")[1]


def test_masks_of_reasoning_data_are_looked_at_too(tmp_path, capsys):
    shapes = [{"label": "target", "points": [[2, 3], [20, 3]]}]
    write_reason_seg(tmp_path, "val", "a", {"text": ["what?"], "is_sentence": True, "shapes": shapes})
    assert check.main([f"--dataset_dir={tmp_path}", "--val_dataset_list=ReasonSeg|val"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "1 of 1 masks are as thin as a line" in printed
    assert "a polygon of fewer than three points, drawn as a line" in printed
