"""MUSE: several targets a question, text answers with {seg}, images of three folders."""

from __future__ import annotations

import numpy as np
import pytest

from model.text.special_tokens import SEG, Special
from tests.utils.data.layouts import HEIGHT, WIDTH, box_polygon, save, save_json, seeded_image
from utils.data.datasets.muse import Muse
from utils.data.masks import decode_segmentation
from utils.data.registry import build_val_dataset
from utils.data.types import Recipe, UnusableItemError

LEFT, RIGHT = box_polygon(1, 2, 8, 10), box_polygon(20, 4, 9, 12)
CUP = {"segmentation": [LEFT], "category_name": "cup", "rephrased_name": "the red cup", "bbox": [1, 2, 8, 10]}
DISH = {"segmentation": [RIGHT], "category_name": "dish"}
PLACES = {
    "train2014": "refer_seg/images/mscoco/images/train2014/COCO_train2014_000000000001.jpg",
    "train2017": "refer_seg/images/mscoco/images/train2017/000000000002.jpg",
    "val2017": "coco/val2017/000000000003.jpg",
}
NAMES = {folder: place.rsplit("/", 1)[1] for folder, place in PLACES.items()}


def entry(questions, answers, folder="train2017", **more):
    image = {"coco_url": f"http://images.cocodataset.org/{folder}/{NAMES[folder]}"}
    if folder == "train2014":
        image = {"file_name": NAMES[folder]}
    return {
        **image,
        "height": HEIGHT,
        "width": WIDTH,
        "ann_list": [],
        "questions": questions,
        "answers": answers,
        **more,
    }


def write(root, entries, path="muse/muse_train.json"):
    save_json(root / path, entries)
    for number, place in enumerate(PLACES.values()):
        save(root / place, seeded_image(number))


def mask_of(*polygons):
    return np.stack([decode_segmentation([polygon], HEIGHT, WIDTH) for polygon in polygons])


def conversations(root, recipe, seed=0):
    return Muse(root, "train").sample_of(0, np.random.default_rng(seed), recipe).conversations


def test_every_seg_mark_of_a_text_answer_is_a_mask_in_the_order_of_the_targets(tmp_path, recipe):
    text = "Use the dish {seg} or the red cup{seg}, not [SEG] or {0}."
    write(tmp_path, [entry(["What holds soup?"], [[DISH, CUP]], text_answers=[text])])
    sample = Muse.open(tmp_path, (), training=True).draw(np.random.default_rng(0), recipe)
    (conversation,) = sample.conversations
    assert str(conversation.turns[0]).startswith("What holds soup? ")
    assert conversation.turns[1].text == (
        "Use the dish ", Special(SEG), " or the red cup", Special(SEG), ", not [SEG] or {0}.",
    )  # fmt: skip
    assert np.array_equal(sample.masks, mask_of(RIGHT, LEFT))


@pytest.mark.parametrize("more", [{}, {"text_answers": [None]}, {"text_answers": []}])
def test_without_a_text_answer_the_targets_are_named(tmp_path, recipe, more):
    write(tmp_path, [entry(["What holds soup?"], [[CUP, DISH]], **more)])
    (conversation,) = conversations(tmp_path, recipe)
    assert conversation.answers == (f"the red cup {SEG}, dish {SEG}.",)


def test_evaluation_has_all_questions_with_the_masks_of_each(tmp_path):
    write(tmp_path, [entry(["Both?", "One?"], [[CUP, DISH], [DISH]])], "muse/muse_val.json")
    (sample,) = build_val_dataset("MUSE|val", tmp_path)
    assert sample.questions == ("Both?", "One?")
    assert [len(masks) for masks in sample.masks] == [2, 1]
    assert np.array_equal(sample.masks[0], mask_of(LEFT, RIGHT))
    assert np.array_equal(sample.masks[1], mask_of(RIGHT))


def test_images_are_those_of_three_folders_of_coco(tmp_path):
    write(tmp_path, [entry(["Q?"], [[CUP]], folder) for folder in PLACES])
    dataset = Muse(tmp_path, "train")
    assert [item.path.relative_to(tmp_path).as_posix() for item in dataset.items] == list(PLACES.values())
    assert (dataset.num_images, dataset.num_annotations) == (3, 3)


@pytest.mark.parametrize(
    "path",
    [
        "muse/muse_test_many.json",
        "muse/MUSE_test_many.json",
        "multi_reason_seg/MultiReasonSeg/MUSE_test_many.json",
    ],
)
def test_its_file_has_several_names(tmp_path, path):
    write(tmp_path, [entry(["Q?"], [[CUP]])], path)
    assert len(Muse(tmp_path, "test_many")) == 1


def test_no_more_questions_than_asked_for(tmp_path, recipe):
    write(tmp_path, [entry([f"Question {letter}?" for letter in "abcde"], [[CUP]] * 5)])
    assert len(conversations(tmp_path, recipe)) == 3
    assert len(conversations(tmp_path, Recipe(format=recipe.format, num_questions=1))) == 1


def test_a_text_answer_with_another_number_of_marks_is_left_out_and_noted(tmp_path):
    texts = ["One {seg}.", "Two {seg}."]
    write(tmp_path, [entry(["Good?", "Bad?"], [[CUP], [CUP, DISH]], text_answers=texts)])
    dataset = Muse(tmp_path, "train")
    assert [question.text for question in dataset.items[0].questions] == ["Good?"]
    (note,) = dataset.notes
    assert note == "questions whose text answer has not one {seg} for each target are left out"


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (entry(["Q?"], [[CUP], [DISH]]), "1 questions, 2 answers, 1 text answers; these are as many"),
        (entry(["Q?"], [[CUP]], text_answers=["a {seg}", "b"]), "1 questions, 1 answers, 2 text answers"),
        (entry(["Q?"], [[]]), "no question with targets"),
        (entry([], []), "no question with targets"),
        (entry([5], [[CUP]]), "a question and its text answer are texts, got 5, None"),
        (entry(["Q?"], [[CUP]], text_answers=[7]), "a question and its text answer are texts, got 'Q?', 7"),
        (entry("Q", [[CUP]]), "'questions', 'answers' and 'text_answers' are lists"),
        (entry(["Q?"], [[{"category_name": "cup"}]]), "'segmentation'"),
        (entry(["Q?"], [[{"segmentation": [LEFT]}]]), "'category_name'"),
        (entry(["Q?"], [5]), "missing or malformed"),
        ({**entry(["Q?"], [[CUP]]), "height": "big"}, "height and width are"),
        (
            {**entry(["Q?"], [[CUP]]), "coco_url": "http://x/test2017/1.jpg"},
            "'coco_url' is 'http://x/test2017/1.jpg'",
        ),
        ({**entry(["Q?"], [[CUP]]), "coco_url": None}, "missing or malformed"),
        ({**entry(["Q?"], [[CUP]]), "coco_url": "http://x/val2017/9.jpg"}, "no image "),
        ({**entry(["Q?"], [[CUP]]), "file_name": "../../../../../outside.jpg"}, "no image "),
        ({"questions": ["Q?"], "answers": [[CUP]]}, "'coco_url'"),
        (7, "an entry has 'questions' and 'answers', got 7"),
    ],
)
def test_a_malformed_entry_is_dropped_with_its_position_and_reason(tmp_path, broken, reason):
    write(tmp_path, [entry(["Good?"], [[CUP]]), broken])
    save(tmp_path.parent / "outside.jpg", seeded_image(0))
    dataset = Muse(tmp_path, "train")
    assert [item.questions[0].text for item in dataset.items] == ["Good?"]
    (dropped,) = dataset.dropped
    assert "muse_train.json, entry 1: " in dropped
    assert reason in dropped


def test_a_file_that_is_no_list_is_one_message(tmp_path):
    write(tmp_path, {"questions": []})
    with pytest.raises(ValueError, match=r"muse_train\.json: a list of images with questions, got"):
        Muse(tmp_path, "train")
    with pytest.raises(
        FileNotFoundError, match=r"MUSE needs .*muse_val\.json or .*MUSE_val.* holds muse_train"
    ):
        Muse(tmp_path, "val")


def test_targets_that_do_not_decode_or_are_empty_make_the_item_unusable(tmp_path, recipe):
    write(
        tmp_path,
        [
            entry(["Odd?"], [[{**CUP, "segmentation": [[1e8, 2, 9, 2, 9, 12]]}]]),
            entry(["Empty?"], [[CUP, {**CUP, "segmentation": [[1, 1, 5, 5]]}]]),
        ],
    )
    dataset = Muse(tmp_path, "train")
    with pytest.raises(UnusableItemError, match=r"000002\.jpg: 'Odd\?': a coordinate is 1e\+08"):
        dataset.sample_of(0, np.random.default_rng(0), recipe)
    with pytest.raises(UnusableItemError, match="the mask of a target is empty"):
        dataset.sample_of(1, np.random.default_rng(0), recipe)
