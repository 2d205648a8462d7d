"""LISA++: four parts, hand-written files in each variant of their format; pycocotools judges the masks."""

from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from model.text.format import SequenceFormat
from model.text.special_tokens import SEG, Special
from tests.utils.data.layouts import (
    HEIGHT,
    WIDTH,
    box_polygon,
    compressed_rle,
    save,
    save_json,
    seeded_image,
    uncompressed_rle,
)
from utils.data.datasets.lisa_plus import ASKED_WITH, UNPAIRED, WITHOUT_MASK, LisaPlus
from utils.data.registry import build_val_dataset
from utils.data.types import Recipe, UnusableItemError

IMAGE = "000000000009.jpg"
FILES = {
    "instance": "LISA_Plus_Instance_Seg",
    "cot": "LISA_Plus_COT",
    "conversations": "LISA_Plus_Conversations",
    "caption": "LISA_Plus_Caption",
}
LEFT, RIGHT = box_polygon(1, 2, 8, 10), box_polygon(20, 4, 9, 12)
LINE = [1, 1, 5, 5]  # covers nothing
QUESTION = "English Question"
ANSWER = "English Answer"


def judged(*polygons):
    """(height, width): the mask of flat polygons by pycocotools."""
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(list(polygons), HEIGHT, WIDTH)))


def pairs(polygon):
    return [list(point) for point in zip(polygon[::2], polygon[1::2], strict=True)]


def instance(ids=("11", "12"), **more):
    points = {
        "11": {"label name": "cup", "points": [LEFT]},
        "12": {"label name": "red  dish", "polygon": [RIGHT]},
    }
    return {QUESTION: "What holds soup?", "img_path": IMAGE, "ID": list(ids), "points": points, **more}


def told(answer, question="Why?", **more):
    """An entry of cot or caption."""
    return {
        "Chinese Question": "?",
        QUESTION: question,
        ANSWER: answer,
        "image_path": IMAGE,
        "info": {"11": {"polygon": [LEFT]}, "12": [RIGHT], "13": {"polygon": [LINE]}},
        **more,
    }


def dialogue(output, **more):
    return {"img_pth": IMAGE, "output": output, "info": {"11": {"polygon": [LEFT]}, "12": [RIGHT]}, **more}


def write(root, part, *entries, path="reason_seg_plus/{}.json"):
    save_json(root / path.format(FILES[part]), list(entries))
    save(root / "coco/train2017" / IMAGE, seeded_image(1))


def write_coco(root, *annotations, split="train2017"):
    categories = [{"id": 1, "name": "cup"}, {"id": 2, "name": "dish"}]
    content = {"images": [], "annotations": list(annotations), "categories": categories}
    save_json(root / f"coco/annotations/instances_{split}.json", content)


def annotation(number, polygon, category=1, image_id=9):
    return {"id": number, "image_id": image_id, "category_id": category, "segmentation": [polygon]}


def opened(root, part):
    return LisaPlus.open(root, (part,), training=True)


def sample(root, part, recipe, index=0):
    return opened(root, part).sample_of(index, np.random.default_rng(0), recipe)


def turns(root, part, recipe):
    (conversation,) = sample(root, part, recipe).conversations
    return [str(turn) for turn in conversation.turns]


def test_instances_are_named_each_with_its_mask(tmp_path, recipe):
    write(tmp_path, "instance", instance())
    made = sample(tmp_path, "instance", recipe)
    (conversation,) = made.conversations
    assert str(conversation.turns[0]).startswith("What holds soup? ")
    assert conversation.turns[1].text == ("cup ", Special(SEG), ", red dish ", Special(SEG), ".")
    assert np.array_equal(made.masks, [judged(LEFT), judged(RIGHT)])


def test_ids_are_numbers_or_texts_and_each_is_asked_for_once(tmp_path, recipe):
    write(tmp_path, "instance", instance(ids=(12, "11", 12.0, "12")))
    made = sample(tmp_path, "instance", recipe)
    assert made.conversations[0].answers == (f"red dish {SEG}, cup {SEG}.",)
    assert np.array_equal(made.masks, [judged(RIGHT), judged(LEFT)])


def test_masks_that_an_entry_does_not_hold_are_those_of_coco_for_its_image(tmp_path, recipe):
    by_id = instance(ids=("21", 22), points={"21": {"label name": "mug"}})
    write(tmp_path, "instance", by_id, instance(ids=(23,), points={}), instance(points={}))
    write_coco(
        tmp_path, annotation(22, RIGHT, category=2), annotation(21, LEFT), annotation(23, LEFT, image_id=8)
    )
    data = opened(tmp_path, "instance")
    made = data.sample_of(0, np.random.default_rng(0), recipe)
    assert made.conversations[0].answers == (f"mug {SEG}, dish {SEG}.",)
    assert np.array_equal(made.masks, [judged(LEFT), judged(RIGHT)])
    first, second = data.dropped  # a mask of another image, and ids that COCO does not have
    assert "entry 1: masks [23] are neither in it nor, as masks of its image, in " in first
    assert first.endswith("coco/annotations/instances_train2017.json")
    assert "entry 2: masks [11, 12] are neither" in second


def test_coco_file_is_not_read_when_the_entries_hold_all_masks(tmp_path):
    write(tmp_path, "instance", instance())
    (tmp_path / "coco/annotations").mkdir()
    (tmp_path / "coco/annotations/instances_train2017.json").write_text("no JSON")
    assert len(opened(tmp_path, "instance")) == 1
    write(tmp_path, "instance", instance(points={}))
    with pytest.raises(ValueError, match=r"instances_train2017\.json: not JSON"):
        opened(tmp_path, "instance")


def test_ids_and_labels_may_be_in_the_answer_only(tmp_path, recipe):
    answer = "instance id is 12, label name is dish; instance id is 11, label name is cup"
    entry = instance(points=None, info={"11": [LEFT], "12": [RIGHT]}, **{ANSWER: answer})
    del entry["ID"]
    write(tmp_path, "instance", entry)
    assert sample(tmp_path, "instance", recipe).conversations[0].answers == (f"dish {SEG}, cup {SEG}.",)


BOTH = judged(LEFT, RIGHT)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (pairs(LEFT), judged(LEFT)),
        ([pairs(LEFT)], judged(LEFT)),
        ([pairs(LEFT), pairs(RIGHT)], BOTH),
        ([LEFT, RIGHT], BOTH),
        (LEFT, judged(LEFT)),
        ({"polygon": pairs(RIGHT)}, judged(RIGHT)),
        ({"polygon": None, "polygon_raw": [pairs(RIGHT)]}, judged(RIGHT)),
        ({"points": [LEFT, RIGHT]}, BOTH),
        (compressed_rle(BOTH), BOTH),
        (uncompressed_rle(BOTH), BOTH),
        ([compressed_rle(BOTH)], BOTH),
        ({"polygon": uncompressed_rle(BOTH)}, BOTH),
    ],
)
def test_masks_are_polygons_in_every_form_and_run_lengths(tmp_path, recipe, written, expected):
    write(tmp_path, "caption", told("A <11|cup>.", info={"11": written}))
    assert np.array_equal(sample(tmp_path, "caption", recipe).masks, [expected])


def test_an_explained_answer_keeps_its_words_around_the_masks(tmp_path, recipe):
    write(
        tmp_path, "cot", told("Soup needs depth: [《11|cup》, 《12|dish》] are here. It is the cup <11|cup>.")
    )
    made = sample(tmp_path, "cot", recipe)
    question, answer = (str(turn) for turn in made.conversations[0].turns)
    assert question.startswith("Why? ")
    assert len(question) > len("Why? ")
    assert answer == f"Soup needs depth: cup {SEG}, dish {SEG} are here. It is the cup {SEG}."
    assert np.array_equal(made.masks, [judged(LEFT), judged(RIGHT), judged(LEFT)])


def test_a_caption_is_asked_for_as_it_is_written(tmp_path, recipe):
    write(tmp_path, "caption", told("A cup《11|cup》beside a <12|dish>.", question=" Describe it. "))
    assert turns(tmp_path, "caption", recipe) == ["Describe it.", f"A cup {SEG} beside a dish {SEG}."]


def test_masks_that_are_missing_or_empty_leave_their_words(tmp_path, recipe):
    """Mask 13 is a line, which only shows when it is drawn; 14 is not there."""
    write(tmp_path, "caption", told("A cup <11|cup>, a <13|spoon>, [<14|fork>, <12|dish>] and <14|fork>."))
    data = opened(tmp_path, "caption")
    assert data.notes.keys() == {WITHOUT_MASK}
    made = data.sample_of(0, np.random.default_rng(0), recipe)
    assert made.conversations[0].answers == (f"A cup {SEG}, a spoon, dish {SEG} and fork.",)
    assert np.array_equal(made.masks, [judged(LEFT), judged(RIGHT)])


def test_a_dialogue_is_one_conversation(tmp_path, recipe):
    output = "<person>: What is it?\n<robot>: A <11|cup>.\n<person>: Full? <robot>: No.<person> : So?<robot>:<12|b>"
    write(tmp_path, "conversations", dialogue(output))
    expected = ["What is it?", f"A cup {SEG}.", "Full?", "No.", "So?", f"b {SEG}"]
    assert turns(tmp_path, "conversations", recipe) == expected
    assert opened(tmp_path, "conversations").notes == {}


@pytest.mark.parametrize(
    ("output", "note"),
    [
        ("<person>: And <12|dish>? <robot>: It is <12|dish>. <person>: Q? <robot>: A <11|cup>.", ASKED_WITH),
        ("<person>: Q? <robot>: A <11|cup>. <person>: And [12|dish]? <robot>: Yes.", ASKED_WITH),
        ("<person>: One? <person>: Q? <robot>: A <11|cup>. <robot>: More.", UNPAIRED),
        ("Hello. <person>: Q? <robot>: A <11|cup>. <person>: Bye.", UNPAIRED),
        ("<robot>: Hi. <person>: Q? <robot>: A <11|cup>. <person>: <robot>: What?", UNPAIRED),
    ],
)
def test_turns_that_cannot_be_asked_are_left_out_and_noted(tmp_path, recipe, output, note):
    write(tmp_path, "conversations", dialogue(output))
    assert turns(tmp_path, "conversations", recipe) == ["Q?", f"A cup {SEG}."]
    assert opened(tmp_path, "conversations").notes.keys() == {note}


@pytest.mark.parametrize(
    ("part", "broken", "reason"),
    [
        ("instance", instance(ids=()), "'ID' is a list of masks, got []"),
        ("instance", instance(ids=(True,)), "'ID' is a list of masks, got [True]"),
        ("instance", instance(ids=(None, [])), "'ID' is a list of masks"),
        ("instance", {**instance(), "ID": 11}, "'ID' is a list of masks, got 11"),
        ("instance", instance(ids=("11", "99")), "masks [99] are neither in it nor"),
        ("instance", instance(points=[1]), "'points' has masks by their ids, got [1]"),
        ("instance", instance(points={"11": 5}), "mask 11: polygons or a run-length code, got 5"),
        ("instance", instance(points={"11": {"label name": 5}}), "mask 11: 'label name' is a text, got 5"),
        ("instance", instance(points={"11": {"points": []}}), "masks [11, 12] are neither"),
        ("instance", {**instance(), QUESTION: " "}, "'English Question' is a text, got ' '"),
        ("instance", {"img_path": IMAGE}, "missing or malformed 'English Question'"),
        ("instance", {QUESTION: "Q?"}, "no image: none of img_path, image_path, img_pth"),
        ("instance", instance(img_path=5), "'img_path' is a text, got 5"),
        ("instance", instance(img_path="1.jpg"), "no image "),
        ("instance", instance(img_path="../../../outside.jpg"), "no image "),
        ("instance", 7, "an entry is an object with a question and masks, got 7"),
        ("cot", told(7), "'English Answer' is a text, got 7"),
        ("cot", {QUESTION: "Q?", "image_path": IMAGE}, "missing or malformed 'English Answer'"),
        ("instance", instance(ids=range(1001)), "1001 references to masks; an entry may have 1000"),
        ("caption", told("<11|cup>" * 1001), "1001 references to masks; an entry may have 1000"),
        ("cot", told("No reference."), "no answer to a plain question refers to a mask"),
        ("cot", told("It is <11|cup>.", question="And <12|dish>?"), "no answer to a plain question"),
        ("caption", told("A <14|fork>."), "masks [14] are neither in it nor"),
        ("caption", told("A <11|cup>.", info="x"), "'info' has masks by their ids, got 'x'"),
        ("conversations", dialogue("Hello."), "no answer to a plain question refers to a mask"),
        ("conversations", dialogue(""), "'output' is a text, got ''"),
    ],
)
def test_a_malformed_entry_is_dropped_with_its_position_and_reason(tmp_path, part, broken, reason):
    good = {"instance": instance(), "conversations": dialogue("<person>: Q? <robot>: <11|cup>")}
    write(tmp_path, part, good.get(part, told("A <11|cup>.")), broken)
    save(tmp_path.parent / "outside.jpg", seeded_image(0))
    data = opened(tmp_path, part)
    assert len(data.items) == 1
    (dropped,) = data.dropped
    assert f"{FILES[part]}.json, entry 1: " in dropped
    assert reason in dropped


def test_targets_that_do_not_decode_or_are_empty_make_the_item_unusable(tmp_path, recipe):
    far, line = ({"11": {"points": [polygon]}} for polygon in ([1e8, 2, 9, 2, 9, 12], LINE))
    write(tmp_path, "instance", instance(ids=(11,), points=far), instance(ids=(11,), points=line))
    with pytest.raises(UnusableItemError, match=r"000009\.jpg: entry 0, mask 11: a coordinate is 1e\+08"):
        sample(tmp_path, "instance", recipe)
    with pytest.raises(UnusableItemError, match=r"masks \[11\] are empty"):
        sample(tmp_path, "instance", recipe, index=1)
    write(tmp_path, "cot", told("It is <13|spoon>."))
    with pytest.raises(UnusableItemError, match=r"masks \[13\] are empty"):
        sample(tmp_path, "cot", recipe)


def test_instances_are_evaluated_as_questions_with_several_targets(tmp_path):
    write(tmp_path, "instance", instance(), path="LISA_Plus_Instance_Seg/data_val.json")
    for entry in ("LISA++", "LISA++|instance", "LISA++|instance|val"):
        (made,) = build_val_dataset(entry, tmp_path)
        assert made.questions == ("What holds soup?",)
        assert np.array_equal(made.masks[0], [judged(LEFT), judged(RIGHT)])
    with pytest.raises(
        FileNotFoundError, match=r"LISA\+\+\|instance needs .*LISA_Plus_Instance_Seg\.json or"
    ):
        build_val_dataset("LISA++|instance|train", tmp_path)


def test_a_missing_validation_split_says_that_none_is_published(tmp_path):
    write(tmp_path, "instance", instance())
    with pytest.raises(
        FileNotFoundError, match=r"\|val \(only LISA\+\+\|instance\|train is published\) needs"
    ):
        build_val_dataset("LISA++|instance", tmp_path)


@pytest.mark.parametrize(
    "path",
    [
        *("reason_seg_plus/{}.json", "reason_seg_plus/{}/data.json", "{}.json", "{}/data.json"),
        "Senqiao/{}/data.json",
    ],
)
@pytest.mark.parametrize("part", FILES)
def test_its_files_have_several_places(tmp_path, part, path):
    entry = instance() if part == "instance" else told("<11|cup>", output="<person>: Q? <robot>: <11|cup>")
    write(tmp_path, part, entry, path=path)
    data = opened(tmp_path, part)
    assert (data.name, data.split, len(data), data.num_images) == (f"LISA++|{part}", "train", 1, 1)


@pytest.mark.parametrize("folder", ["coco/val2017", "refer_seg/images/mscoco/images/train2017"])
def test_images_are_found_in_every_folder_of_coco_2017(tmp_path, folder):
    write(tmp_path, "instance", instance(img_path="train2017/1.jpg"))
    save(tmp_path / folder / "1.jpg", seeded_image(2))
    assert opened(tmp_path, "instance").items[0].path == tmp_path / folder / "1.jpg"


@pytest.mark.parametrize(
    ("fields", "training", "reason"),
    [
        (("val",), True, r"LISA\+\+ has no part 'val'; known: LISA\+\+\|instance, "),
        (("cot", "test"), True, r"LISA\+\+\|cot has no split 'test'; known: train, val"),
        (("cot", "train", "x"), True, r"write LISA\+\+\|PART\|SPLIT, got LISA\+\+\|cot\|train\|x"),
        (("caption",), False, r"LISA\+\+\|caption is for training only; LISA\+\+\|instance is evaluated"),
    ],
)
def test_a_wrong_entry_of_a_flag_is_one_message(tmp_path, fields, training, reason):
    with pytest.raises(ValueError, match=reason):
        LisaPlus.open(tmp_path, fields, training=training)


def test_the_default_part_are_the_instances(tmp_path):
    write(tmp_path, "instance", instance())
    assert LisaPlus.open(tmp_path, (), training=True).name == "LISA++|instance"


def test_a_file_that_is_no_list_is_one_message(tmp_path):
    write(tmp_path, "cot")
    save_json(tmp_path / "reason_seg_plus/LISA_Plus_COT.json", {"0": told("<11|cup>")})
    with pytest.raises(ValueError, match=r"LISA_Plus_COT\.json: a list of entries, got"):
        opened(tmp_path, "cot")


def test_another_format_has_its_own_token(tmp_path):
    release = Recipe(format=SequenceFormat.named("release"))
    write(tmp_path, "cot", told("It is <11|cup>."))
    (conversation,) = sample(tmp_path, "cot", release).conversations
    assert conversation.turns[1].text == ("It is cup ", Special("<ins>"), ".")
