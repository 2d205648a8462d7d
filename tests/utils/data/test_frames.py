"""Images that the camera turned: the annotations say in which frame they were drawn."""

import numpy as np
import pytest
from PIL import ExifTags, Image

from tests.utils.data.layouts import box_polygon, compressed_rle, dialogue, save, save_json, write_reason_seg
from utils.data.datasets.reason_seg import ReasonSeg
from utils.data.registry import build_val_dataset

HEIGHT, WIDTH = 96, 64  # of the upright image; (64, 96) as stored
LOW = (10, 70, 40, 20)  # left, top, width, height; fits only the upright image
RIGHT = (70, 10, 20, 40)  # fits only the stored pixels
SMALL = (8, 8, 32, 16)  # fits both


def save_turned(path, box, *, is_drawn_upright, orientation=6):
    """A JPEG with a red block where `box` is, in the frame that it was drawn in."""
    size = (WIDTH, HEIGHT) if is_drawn_upright else (HEIGHT, WIDTH)
    image = Image.new("RGB", size, (0, 90, 0))
    left, top, width, height = box
    image.paste((250, 0, 0), (left, top, left + width, top + height))
    if is_drawn_upright:  # the inverse of what orientation 6 asks for
        image = image.transpose(Image.Transpose.ROTATE_90 if orientation == 6 else Image.Transpose.ROTATE_180)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, exif=exif, quality=95)


def opened(root, segmentation, **stated):
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", **stated}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "segmentation": segmentation}],
        "categories": [{"id": 1, "name": "block"}],
    }
    return build_val_dataset(f"own_coco:{save_json(root / 'labels.json', content)}|exhaustive=true", ".")


def agreement(sample):
    """IoU of class 0 and of the red block."""
    red, mask = sample.image[..., 0] > 170, sample.label == 0
    return (red & mask).sum() / (red | mask).sum()


UPRIGHT, STORED = {"height": HEIGHT, "width": WIDTH}, {"height": WIDTH, "width": HEIGHT}


@pytest.mark.parametrize(
    ("box", "is_drawn_upright", "stated"),
    [
        *((LOW, True, stated) for stated in (UPRIGHT, STORED, {})),
        *((RIGHT, False, stated) for stated in (UPRIGHT, STORED, {})),
        (SMALL, True, UPRIGHT),
        (SMALL, True, {}),
        (SMALL, False, STORED),
    ],
)
def test_the_frame_is_the_one_that_the_annotations_fit(tmp_path, caplog, box, is_drawn_upright, stated):
    save_turned(tmp_path / "a.jpg", box, is_drawn_upright=is_drawn_upright)
    data = opened(tmp_path, [box_polygon(*box)], **stated)
    sample = data[0]
    assert agreement(sample) > 0.95
    taken = "upright" if is_drawn_upright else "as stored"
    assert f"a.jpg: turned by the camera, taken {taken}" in caplog.text
    assert len(data.notes) == 1


@pytest.mark.parametrize("is_drawn_upright", [True, False])
def test_run_lengths_tell_the_frame_by_their_size(tmp_path, is_drawn_upright):
    save_turned(tmp_path / "a.jpg", SMALL, is_drawn_upright=is_drawn_upright)
    mask = np.zeros((HEIGHT, WIDTH) if is_drawn_upright else (WIDTH, HEIGHT), dtype=np.uint8)
    mask[8:24, 8:40] = 1
    for stated in (UPRIGHT, STORED, {}):
        assert agreement(opened(tmp_path, compressed_rle(mask), **stated)[0]) > 0.95


def test_an_image_on_its_head_is_set_upright(tmp_path, caplog):
    save_turned(tmp_path / "a.jpg", LOW, is_drawn_upright=True, orientation=3)
    assert agreement(opened(tmp_path, [box_polygon(*LOW)], **UPRIGHT)[0]) > 0.95
    assert "turned by the camera, taken upright" in caplog.text


def test_nothing_is_said_of_images_that_are_not_turned(tmp_path, caplog):
    save_turned(tmp_path / "a.jpg", RIGHT, is_drawn_upright=False, orientation=1)
    data = opened(tmp_path, [box_polygon(*RIGHT)], **STORED)
    assert agreement(data[0]) > 0.95
    assert not data.notes
    assert "turned" not in caplog.text


def test_questions_and_reasoning_take_the_same_frame(tmp_path):
    for box, is_drawn_upright in ((LOW, True), (RIGHT, False)):
        save_turned(tmp_path / "a.jpg", box, is_drawn_upright=is_drawn_upright)
        polygon = box_polygon(*box)
        line = dialogue("a.jpg", "Where?", "[SEG].") | {"masks": [[polygon]]}
        sample = build_val_dataset(f"own_jsonl:{save_json(tmp_path / 'talk.jsonl', line)}", ".")[0]
        red = sample.image[..., 0] > 170
        assert (red & (sample.masks[0] > 0)).sum() / (red | (sample.masks[0] > 0)).sum() > 0.95

        pairs = [polygon[k : k + 2] for k in range(0, 8, 2)]
        content = {"text": ["what?"], "is_sentence": True, "shapes": [{"label": "target", "points": pairs}]}
        write_reason_seg(tmp_path, "val", "a", content)
        save_turned(tmp_path / "reason_seg/ReasonSeg/val/a.jpg", box, is_drawn_upright=is_drawn_upright)
        reasoned = ReasonSeg(tmp_path, "val")[0]
        red = reasoned.image[..., 0] > 170
        assert (red & (reasoned.mask > 0)).sum() / (
            red | (reasoned.mask > 0)
        ).sum() > 0.85  # outlines included


@pytest.mark.parametrize(
    ("orientation", "size", "taken"),
    [
        (6, (HEIGHT, WIDTH), "upright: only that has the label's size"),
        (6, (WIDTH, HEIGHT), "as stored: only that has the label's size"),
        (3, (HEIGHT, WIDTH), "upright: the label's size fits both"),
        (1, (HEIGHT, WIDTH), ""),
    ],
)
def test_labels_tell_the_frame_by_their_size_and_the_log_says_so(tmp_path, caplog, orientation, size, taken):
    (tmp_path / "images").mkdir()
    save_turned(tmp_path / "images/a.jpg", SMALL, is_drawn_upright=True, orientation=orientation)
    save(tmp_path / "labels/a.png", np.ones(size, dtype=np.uint8))
    (tmp_path / "classes.txt").write_text("nothing\nbox\n")
    data = build_val_dataset(f"own_sem:{tmp_path}", ".")
    assert data[0].label.shape == size
    said = f"a.jpg: turned by the camera, taken {taken}"
    assert (said in caplog.text) if taken else not data.notes


def test_annotations_of_a_larger_image_are_pointed_out(tmp_path, caplog):
    save_turned(tmp_path / "a.jpg", SMALL, is_drawn_upright=True, orientation=1)
    for beyond, is_far in (
        ([WIDTH - 9, 2, WIDTH + 3, 2, WIDTH + 3, 9], False),
        ([9, 2, 2 * WIDTH, 2, 2 * WIDTH, 9], True),
    ):
        data = opened(tmp_path, [beyond])
        data[0]
        assert bool(data.notes) == is_far
    assert "reach far beyond the image" in caplog.text
