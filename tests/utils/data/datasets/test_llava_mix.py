"""LLaVA's mixture: images in several folders, entries without an image, many turns, unusable entries."""

from __future__ import annotations

import numpy as np
import pytest

from tests.utils.data.layouts import dialogue, save, save_json, seeded_image
from utils.data.datasets.llava_mix import LlavaMix
from utils.data.registry import DATASETS, parse_val_list

COCO, GQA, VG = "coco/train2017/000000000009.jpg", "gqa/images/2354786.jpg", "vg/VG_100K_2/7.jpg"
TEXT_ONLY = [
    {"id": "a", "model": "", "conversations": [{"from": "gpt", "value": "Hello."}]},
    {"id": "b", "image": None, "conversations": []},
    {"id": "c"},
]


def write(root, entries, where="llava_dataset", images=(COCO, GQA, VG)):
    save_json(root / where / "llava_v1_5_mix665k.json", entries)
    for number, name in enumerate(images):
        save(root / name, seeded_image(number))


def told(root):
    return [(dialogue.image, dialogue.texts) for dialogue in LlavaMix(root, "train").dialogues]


def test_image_names_contain_their_folders(tmp_path):
    turns = (
        "Is it red?\nAnswer the question using a single word or phrase.",
        "Yes",
        "And this?",
        "No",
        "Why?",
        "So.",
    )
    write(tmp_path, [dialogue(COCO, "What?", "A."), dialogue(GQA, *turns), dialogue(VG, "Where?", "Here.")])
    assert told(tmp_path) == [(COCO, ("What?", "A.")), (GQA, turns), (VG, ("Where?", "Here."))]


def test_every_dialogue_is_one_conversation_with_all_its_turns(tmp_path, recipe):
    write(tmp_path, [dialogue(GQA, *(f"text {number}" for number in range(20)))])
    sample = LlavaMix.open(tmp_path, (), training=True).draw(np.random.default_rng(0), recipe)
    (conversation,) = sample.conversations
    assert [str(turn) for turn in conversation.turns] == [f"text {number}" for number in range(20)]
    assert sample.masks.shape == (0, *sample.image.shape[:2])
    assert np.array_equal(sample.image, LlavaMix(tmp_path, "train")[0].image)


def test_entries_without_an_image_are_counted_and_left_out(tmp_path, caplog):
    write(tmp_path, [TEXT_ONLY[0], dialogue(COCO, "What?", "A."), *TEXT_ONLY[1:]])
    dataset = LlavaMix(tmp_path, "train")
    assert (len(dataset.dialogues), dataset.dropped) == (1, [])
    assert str(dataset.coverage) == "1 of 4 entries; 3 without an image"
    assert caplog.text == ""  # expected, so no warning


def test_a_mixture_of_texts_alone_is_nothing_to_train_on(tmp_path):
    write(tmp_path, TEXT_ONLY)
    with pytest.raises(FileNotFoundError, match=r"llava_mix\|train: no usable item in .*mix665k\.json"):
        LlavaMix(tmp_path, "train")


def test_an_unusable_entry_is_dropped_with_its_position_and_reason(tmp_path):
    write(
        tmp_path,
        [
            dialogue(COCO, "What?", "A."),
            dialogue("ocr_vqa/images/1.jpg", "Who?", "Me."),
            dialogue(GQA, "Only a question?"),
            {"id": "x", "image": 5, "conversations": dialogue(GQA, "a", "b")["conversations"]},
            dialogue("../outside.jpg", "a", "b"),
            "no entry",
            7,
        ],
    )
    save(tmp_path.parent / "outside.jpg", seeded_image(0))
    dataset = LlavaMix(tmp_path, "train")
    assert told(tmp_path) == [(COCO, ("What?", "A."))]
    reasons = [
        "no image ",
        "1 turns; a dialogue has",
        "'image' is 5;",
        "no image ",
        "an entry has",
        "an entry has",
    ]
    for position, (reason, dropped) in enumerate(zip(reasons, dataset.dropped, strict=True), start=1):
        assert f"mix665k.json, entry {position}: {reason}" in dropped
    assert dataset.coverage.left_out == {"missing": 2, "unusable": 4}


def test_the_file_may_lie_beside_the_image_folders_as_in_llavas_own_scripts(tmp_path):
    write(tmp_path, [dialogue(GQA, "What?", "A.")], where=".")
    assert told(tmp_path) == [(GQA, ("What?", "A."))]


def test_a_missing_file_is_named_and_it_is_for_training_only(tmp_path):
    (tmp_path / "llava_dataset").mkdir()
    with pytest.raises(
        FileNotFoundError, match=r"llava_mix needs .*llava_dataset.*mix665k\.json or .*holds nothing"
    ):
        LlavaMix(tmp_path, "train")
    (entry,) = parse_val_list("llava_mix")
    with pytest.raises(ValueError, match="llava_mix is for training only"):
        entry.open(tmp_path)
    assert DATASETS["llava_mix"].source == "vqa"
