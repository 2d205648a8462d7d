"""Images without ground truth, with a model that finds what their colours say."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from model.outputs import Segmentation
from model.text.format import SequenceFormat
from utils.data.class_lists import ClassList, load_class_list
from utils.evaluation.predict import classes_asked, find_images, output_names, predict_images, values_written
from utils.evaluation.prompting import EvaluationSettings


class RedModel(torch.nn.Module):
    """A pixel with red value r shows the class named "thing r"; 255 is nothing."""

    config = SimpleNamespace(num_all_classes=80, sequence_format=None, prompt=None)

    def __init__(self) -> None:
        super().__init__()
        self.num_asked: list[int] = []

    def encode_batch(self, images, *, processor):
        return images

    def segment_batch(
        self,
        images,
        classes,
        *,
        processor,
        presence_threshold,
        rethreshold,
        classes_per_query,
        match_distance,
    ):
        assert not torch.is_grad_enabled()
        answers = []
        for image, names in zip(images, classes, strict=True):
            self.num_asked.append(len(names))
            there = {f"thing {red}": image[..., 0] == red for red in np.unique(image[..., 0]) if red < 255}
            present = [name in there for name in names]
            masks = [np.where(there[name], 1.0, -1.0) for name in names if name in there]
            stacked = np.stack(masks) if masks else np.zeros((0, *image.shape[:2]))
            answers.append(
                Segmentation(
                    names=tuple(names),
                    present=present,
                    probabilities=[0.75 if there else 0.25 for there in present],
                    masks=torch.from_numpy(stacked).float(),
                    num_passes=1,
                )
            )
        return answers


PROCESSOR = SimpleNamespace(format=SequenceFormat.named("paper"))


def things(count: int) -> ClassList:
    names = [f"thing {number}" for number in range(count)]
    return ClassList(names, names, "test")


@pytest.fixture
def photos(tmp_path):
    """Three images in two folders, one file that is none: left half one thing, right half another or nothing."""
    folder = tmp_path / "photos"
    for name, left, right in (("a/1.png", 0, 2), ("a/2.png", 2, 255), ("b/1.png", 1, 1)):
        image = np.zeros((6, 10, 3), dtype=np.uint8)
        image[:, :5, 0], image[:, 5:, 0] = left, right
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / name)
    (folder / "b" / "broken.png").write_bytes(b"no image")
    return folder


@pytest.mark.parametrize("batch_size", [1, 3])
def test_images_get_labels_an_overlay_and_their_classes_with_probabilities(
    photos, tmp_path, caplog, batch_size
):
    images = find_images(f"{photos}/**/*.png")
    with caplog.at_level(logging.WARNING, logger="utils"):
        path = predict_images(
            RedModel(), PROCESSOR, images, things(4), tmp_path / "out", EvaluationSettings(val_batch_size=batch_size),
            name="m", show_progress=False,
        )  # fmt: skip
    content = json.loads(path.read_text())
    assert content["classes"] == ["thing 0", "thing 1", "thing 2", "thing 3"]
    assert content["unreadable"] == [str(photos / "b" / "broken.png")]
    assert "broken.png" in caplog.text
    first, second, third = content["images"]
    assert first["file"] == str(photos / "a" / "1.png")
    assert first["present"] == [
        {"class": 0, "name": "thing 0", "probability": 0.75, "pixels": 30},
        {"class": 2, "name": "thing 2", "probability": 0.75, "pixels": 30},
    ]
    assert [entry["class"] for entry in third["present"]] == [1]
    assert [entry["labels"] for entry in content["images"]] == [
        "labels/a/1.png",
        "labels/a/2.png",
        "labels/b/1.png",
    ]
    labels = np.asarray(Image.open(tmp_path / "out" / second["labels"]))
    assert labels.dtype == np.uint8
    assert (labels[:, :5] == 2).all()
    assert (labels[:, 5:] == content["no_class"]).all()
    assert content["no_class"] == 255
    with Image.open(tmp_path / "out" / first["overlay"]) as overlay:
        assert overlay.height > 100


def test_label_images_count_lines_of_the_class_file(photos, tmp_path):
    """Lines that name no class keep their number, as in own data."""
    path = predict_images(
        RedModel(), PROCESSOR, [photos / "a" / "1.png"], things(3), tmp_path, EvaluationSettings(),
        class_values=(1, 2, 254), show_progress=False,
    )  # fmt: skip
    content = json.loads(path.read_text())
    assert (content["values"], content["no_class"]) == ([1, 2, 254], 255)
    assert sorted(entry["class"] for entry in content["images"][0]["present"]) == [1, 254]
    labels = np.asarray(Image.open(tmp_path / content["images"][0]["labels"]))
    assert (labels[:, :5] == 1).all()
    assert (labels[:, 5:] == 254).all()
    assert values_written((3, 255)).tolist() == [3, 255, 65535]
    assert values_written((3, 254)).dtype == np.uint8


def test_two_thousand_classes_are_asked_in_several_passes_and_found_by_their_place(photos, tmp_path):
    names = [f"name {number}" for number in range(2000)]
    names[1999], names[700] = "thing 0", "thing 2"
    model = RedModel()
    path = predict_images(
        model, PROCESSOR, [photos / "a" / "1.png"], ClassList(names, names, "test"), tmp_path,
        EvaluationSettings(classes_per_query=50), show_progress=False,
    )  # fmt: skip
    [entry] = json.loads(path.read_text())["images"]
    assert {found["class"] for found in entry["present"]} == {1999, 700}
    assert model.num_asked == [400] * 5
    labels = np.asarray(Image.open(tmp_path / entry["labels"]))
    assert labels.dtype == np.uint16
    assert labels[0].tolist() == [1999] * 5 + [700] * 5


def test_an_image_without_any_of_the_classes_is_all_no_class(photos, tmp_path):
    classes = ClassList(["unicorn"], ["unicorn"], "test")
    path = predict_images(
        RedModel(),
        PROCESSOR,
        [photos / "a" / "1.png"],
        classes,
        tmp_path,
        EvaluationSettings(),
        show_progress=False,
    )
    [entry] = json.loads(path.read_text())["images"]
    assert entry["present"] == []
    assert (np.asarray(Image.open(tmp_path / entry["labels"])) == 255).all()


def test_a_threshold_needs_a_model_that_answers_absent_classes(photos, tmp_path):
    processor = SimpleNamespace(format=SequenceFormat.named("lisa"))
    settings = EvaluationSettings(presence_threshold=0.3)
    with pytest.raises(ValueError, match="presence_threshold needs a model"):
        predict_images(RedModel(), processor, [photos / "a" / "1.png"], things(2), tmp_path, settings)


def test_images_are_a_file_a_folder_or_a_pattern(photos):
    assert find_images(str(photos / "a")) == [photos / "a" / "1.png", photos / "a" / "2.png"]
    assert find_images(f"{photos}/*/1.png") == [photos / "a" / "1.png", photos / "b" / "1.png"]
    assert find_images(str(photos / "a" / "2.png")) == [photos / "a" / "2.png"]
    for nothing in (str(photos), f"{photos}/*.jpg", "nowhere/*.jpg"):
        with pytest.raises(FileNotFoundError, match="matches no image; pass a file, a folder, or a pattern"):
            find_images(nothing)


def test_no_two_images_write_the_same_file(tmp_path):
    images = [tmp_path / name for name in ("a/1.jpg", "a/1.png", "b/1.jpg", "b/2.JPG")]
    assert output_names(images) == ["a/1.jpg", "a/1.png", "b/1", "b/2"]
    assert output_names([tmp_path / "only.jpg"]) == ["only"]


def test_classes_are_read_from_a_file_or_taken_from_a_data_set(tmp_path):
    path = tmp_path / "classes.txt"
    path.write_text("ignore\nred car\nNothing\nfire hydrant\thydrant\n", encoding="utf-8")
    classes, values = classes_asked(str(path))
    assert list(classes) == ["red car", "hydrant"]
    assert values == (1, 3), "lines, counted from 0, as in own data"
    classes, values = classes_asked("ade20k")
    assert list(classes) == list(load_class_list("ade20k"))
    assert values == tuple(range(150))
    path.write_text("".join(f"thing {number}\n" for number in range(2000)))
    assert len(classes_asked(str(path))[0]) == 2000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no classes; write one per line"),
        ("\n# x\n", "line 1: '' names no class for label value 0"),
        ("dog\ncat\nDog\n", "'dog' and 'Dog'"),
    ],
)
def test_a_class_file_without_classes_or_with_one_twice_is_refused(tmp_path, text, message):
    path = tmp_path / "classes.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        classes_asked(str(path))


def test_a_class_file_that_is_not_there_is_said_with_what_could_be_given(tmp_path):
    for name in (str(tmp_path / "classes.txt"), "ade20j", "dog, cat"):
        with pytest.raises(FileNotFoundError, match=r"is no \.txt file; .* ade20k, "):
            classes_asked(name)


def test_masks_that_name_no_class_are_listed_and_told_once(photos, tmp_path, caplog):
    class Silent(RedModel):
        """Says "It is [SEG]." about images that hold thing 2."""

        def segment_batch(self, images, classes, **options):
            answers = super().segment_batch(images, classes, **options)
            return [
                replace(answer, unattributed=("it is",)) if 2 in image[..., 0] else answer
                for image, answer in zip(images, answers, strict=True)
            ]

    lisa = SimpleNamespace(format=SequenceFormat.named("lisa"))
    images = find_images(f"{photos}/*/*.png")
    path = predict_images(
        Silent(), lisa, images, things(2), tmp_path, EvaluationSettings(), show_progress=False
    )
    entries = json.loads(path.read_text())["images"]
    assert [entry["unattributed"] for entry in entries] == [["it is"], ["it is"], []]
    [told] = [record.message for record in caplog.records if "attributed" in record.message]
    assert told == (
        "2 of 3 images: masks could not be attributed to a class ('it is') and are left out; "
        "ask for one class at a time: --classes_per_query 1"
    )
