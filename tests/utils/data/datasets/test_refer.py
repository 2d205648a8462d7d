import collections
import json
import os
import pickle
from functools import partial

import numpy as np
import pytest

from model.text.special_tokens import NEG, SEG
from tests.utils.data.layouts import (
    HEIGHT,
    WIDTH,
    box_polygon,
    compressed_rle,
    reference,
    save,
    seeded_image,
    uncompressed_rle,
    write_refer,
)
from utils.data.datasets.grefcoco import GRefCoco
from utils.data.datasets.refer import RefClef, RefCoco, RefCocoG, RefCocoPlus
from utils.data.masks import decode_segmentation
from utils.data.pickles import load_plain_pickle
from utils.data.types import Recipe, UnusableItemError

LEFT, RIGHT, MIDDLE = box_polygon(1, 2, 8, 10), box_polygon(20, 4, 9, 12), box_polygon(6, 6, 18, 5)
SEGMENTATIONS = {11: [LEFT], 12: [RIGHT], 13: [MIDDLE, LEFT]}


def mask_of(*polygons):
    return decode_segmentation(list(polygons), HEIGHT, WIDTH)


def write_refcoco(root, name="refcoco", refs_file="refs(unc).p"):
    refs = [
        reference(0, 11, 1, "train", "the left box", "small one"),
        reference(1, 12, 1, "train", "the right box"),
        reference(2, 13, 2, "train", "two parts"),
        reference(3, 12, 1, "testA", "right"),
        reference(4, 11, 2, "val", "left"),
    ]
    write_refer(root, name, refs, SEGMENTATIONS, [1, 2], refs_file=refs_file)


@pytest.mark.parametrize(
    ("reader", "refs_file"),
    [(RefCoco, "refs(unc).p"), (RefCocoPlus, "refs(unc).p"), (RefCocoG, "refs(umd).p")],
)
def test_evaluation_gives_each_image_with_all_its_expressions(tmp_path, reader, refs_file):
    write_refcoco(tmp_path, reader.name, refs_file)
    dataset = reader(tmp_path, "train")
    assert len(dataset) == 2
    first, second = dataset
    assert first.expressions == ("the left box", "small one", "the right box")
    assert np.array_equal(first.masks, [mask_of(LEFT), mask_of(LEFT), mask_of(RIGHT)])
    assert first.no_target == (False, False, False)
    assert np.array_equal(second.masks, [mask_of(MIDDLE, LEFT)])
    assert second.masks.max() == 1
    assert first.source.endswith("COCO_train2014_000000000001.jpg")


def test_an_image_without_references_is_neither_drawn_nor_evaluated(tmp_path, recipe):
    """instances.json lists all images of COCO; most of them nobody refers to, which is no fault."""
    write_refer(tmp_path, "refcoco", [reference(0, 11, 1, "train", "the left box")], SEGMENTATIONS, [1, 2])
    dataset = RefCoco(tmp_path, "train")
    assert len(dataset) == 1
    assert dataset.dropped == []
    drawn = {dataset.draw(np.random.default_rng(seed), recipe).source for seed in range(8)}
    assert drawn == {dataset[0].source}


def test_splits_come_from_the_references(tmp_path):
    write_refcoco(tmp_path)
    assert [sample.expressions for sample in RefCoco(tmp_path, "testA")] == [("right",)]
    assert [sample.expressions for sample in RefCoco.open(tmp_path, ())] == [("left",)]
    assert [s.expressions for s in RefCoco.open(tmp_path, ("unc", "testA"))] == [("right",)]
    assert [s.expressions for s in RefCoco.open(tmp_path, ("testA",))] == [("right",)]
    assert len(RefCoco.open(tmp_path, ("unc",), training=True)) == 2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (("unc", "testC"), "refcoco has no split 'testC'; known: train, val, testA, testB"),
        (("umd", "val"), "no splits by 'umd'; known: unc, google"),
        (("unc", "val", "x"), r"write refcoco\|SPLIT_BY\|SPLIT"),
    ],
)
def test_unknown_splits_are_refused(tmp_path, fields, message):
    write_refcoco(tmp_path)
    with pytest.raises(ValueError, match=message):
        RefCoco.open(tmp_path, fields)


def test_every_conversation_has_the_mask_of_its_expression(tmp_path, recipe):
    write_refcoco(tmp_path)
    dataset = RefCoco(tmp_path, "train")
    masks = {
        "the left box": mask_of(LEFT),
        "small one": mask_of(LEFT),
        "the right box": mask_of(RIGHT),
        "two parts": mask_of(MIDDLE, LEFT),
    }
    numbers = set()
    for seed in range(20):
        sample = dataset.draw(np.random.default_rng(seed), recipe)
        numbers.add(len(sample.conversations))
        for conversation, mask in zip(sample.conversations, sample.masks, strict=True):
            (expression,) = (text for text in masks if text in str(conversation.turns[0]))
            assert np.array_equal(mask, masks[expression])
            assert SEG in conversation.answers[0]
    assert numbers == {1, 3}


def test_no_more_expressions_than_asked_for_and_none_twice(tmp_path, recipe):
    refs = [reference(0, 11, 1, "train", *(f"name {letter}" for letter in "abcdefgh"))]
    write_refer(tmp_path, "refcoco", refs, SEGMENTATIONS, [1])
    sample = RefCoco(tmp_path, "train").draw(np.random.default_rng(0), recipe)
    asked = {str(conversation.turns[0])[-40:] for conversation in sample.conversations}
    assert len(sample.conversations) == len(asked) == 5
    one = Recipe(format=recipe.format, num_expressions=1)
    assert len(RefCoco(tmp_path, "train").draw(np.random.default_rng(0), one).conversations) == 1


def test_refclef_reads_run_length_codes_nested_folders_and_lettered_splits(tmp_path):
    blob = mask_of(LEFT, RIGHT)
    segmentations = {1: [uncompressed_rle(blob)], 2: [compressed_rle(blob), compressed_rle(mask_of(MIDDLE))]}
    refs = [reference(0, 1, 7, "testAB", "blob"), reference(1, 2, 7, "testB", "more")]
    write_refer(
        tmp_path, "refclef", refs, segmentations, [7], image_dir="saiapr_tc-12", file_name="07/images/{}.jpg"
    )
    (sample,) = RefClef(tmp_path, "testB")
    assert np.array_equal(sample.masks, [blob, blob | mask_of(MIDDLE)])
    assert next(iter(RefClef(tmp_path, "testA"))).expressions == ("blob",)


def test_grefcoco_has_expressions_with_several_targets_and_none(tmp_path, recipe):
    refs = [
        reference(0, [11, 12], 1, "train", "both boxes"),
        reference(1, [-1], 1, "train", "a giraffe"),
        reference(2, [12], 1, "train", "the right one"),
    ]
    write_refer(tmp_path, "grefcoco", refs, SEGMENTATIONS, [1], refs_file="grefs(unc).json")
    (sample,) = GRefCoco(tmp_path, "train")
    assert sample.no_target == (False, True, False)
    assert np.array_equal(sample.masks, [mask_of(LEFT, RIGHT), 0 * mask_of(LEFT), mask_of(RIGHT)])

    drawn = GRefCoco(tmp_path, "train").draw(np.random.default_rng(3), recipe)
    assert len(drawn.conversations) == 3
    assert len(drawn.masks) == 2
    for conversation in drawn.conversations:
        absent = "giraffe" in str(conversation.turns[0])
        assert (NEG in conversation.answers[0]) == absent
        assert (SEG in conversation.answers[0]) != absent
    with_mask = [c for c in drawn.conversations if c.num_seg]
    for conversation, mask in zip(with_mask, drawn.masks, strict=True):
        both = "both" in str(conversation.turns[0])
        assert np.array_equal(mask, mask_of(LEFT, RIGHT) if both else mask_of(RIGHT))


def test_references_that_cannot_be_used_are_dropped_with_a_reason(tmp_path, caplog):
    write_refer(
        tmp_path,
        "refcoco",
        [
            reference(0, 11, 1, "train", "good"),
            reference(1, 99, 1, "train", "no annotation"),
            reference(2, 11, 5, "train", "no image"),
            reference(3, 11, 2, "train", "no image"),
            reference(4, 11, 1, "train", "  "),
            {"ref_id": 5, "split": "train"},
        ],
        SEGMENTATIONS,
        [1, 2],
    )
    (tmp_path / "refer_seg/images/mscoco/images/train2014/COCO_train2014_000000000002.jpg").unlink()
    dataset = RefCoco(tmp_path, "train")
    assert [item.expressions[0].text for item in dataset.items] == ["good"]
    reasons = ["no annotation [99]", "no image 5", "no image", "no expression", "'ann_id'"]
    assert len(dataset.dropped) == len(reasons)
    for reason, dropped in zip(reasons, dataset.dropped, strict=True):
        assert reason in dropped
        assert "refs(unc).p, reference" in dropped
    assert "5 items dropped, 1 left" in caplog.text


@pytest.mark.parametrize("ann_id", [-1, []])
def test_no_target_is_a_mistake_where_every_reference_has_one(tmp_path, ann_id):
    refs = [reference(0, ann_id, 1, "train", "the left box"), reference(1, 12, 1, "train", "the right box")]
    write_refer(tmp_path, "refcoco", refs, SEGMENTATIONS, [1, 2])
    dataset = RefCoco(tmp_path, "train")
    assert dataset[0].expressions == ("the right box",)
    [dropped] = dataset.dropped
    assert f"'ann_id' is {ann_id}; every reference of refcoco has a target" in str(dropped)


def test_masks_of_another_size_or_without_area_make_the_item_unusable(tmp_path, recipe):
    wrong_size = {"size": [3, 3], "counts": [9]}
    refs = [reference(0, 1, 1, "train", "wrong"), reference(1, 2, 2, "val", "two points")]
    write_refer(tmp_path, "refcoco", refs, {1: wrong_size, 2: [[1, 1, 5, 5]]}, [1, 2])
    with pytest.raises(UnusableItemError, match=r"000001\.jpg: annotations \[1\]: run-length code of size"):
        RefCoco(tmp_path, "train").draw(np.random.default_rng(0), recipe)
    with pytest.raises(UnusableItemError, match=r"the mask of 'two points' is empty"):
        RefCoco(tmp_path, "val").draw(np.random.default_rng(0), recipe)


def test_an_image_of_another_size_than_its_annotations_is_unusable(tmp_path, recipe):
    write_refer(tmp_path, "refcoco", [reference(0, 11, 1, "train", "x")], SEGMENTATIONS, [1])
    path = next((tmp_path / "refer_seg/images/mscoco/images/train2014").iterdir())
    save(path, seeded_image(1, 48, 64))
    with pytest.raises(UnusableItemError, match=r"is \(48, 64\), annotated as \(24, 32\)"):
        RefCoco(tmp_path, "train").draw(np.random.default_rng(0), recipe)


def test_a_broken_image_makes_the_item_unusable(tmp_path, recipe):
    write_refer(tmp_path, "refcoco", [reference(0, 11, 1, "train", "x")], SEGMENTATIONS, [1])
    path = next((tmp_path / "refer_seg/images/mscoco/images/train2014").iterdir())
    path.write_bytes(b"")
    dataset = RefCoco(tmp_path, "train")
    with pytest.raises(UnusableItemError, match="cannot be decoded"):
        dataset.draw(np.random.default_rng(0), recipe)
    with pytest.raises(ValueError, match=path.name):
        dataset[0]


def test_missing_files_are_named(tmp_path):
    write_refcoco(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"refs\(google\)\.p.*holds instances\.json, refs\(unc\)\.p"):
        RefCoco.open(tmp_path, ("google", "val"))
    with pytest.raises(FileNotFoundError, match=r"refcoco\+ needs .*holds images, refcoco"):
        RefCocoPlus(tmp_path, "train")
    (tmp_path / "refer_seg/refcoco/instances.json").write_text('{"images": []}')
    with pytest.raises(ValueError, match=r"instances\.json: no 'annotations'"):
        RefCoco(tmp_path, "train")


def test_images_are_read_unchanged_from_lossless_files(tmp_path):
    write_refer(
        tmp_path, "refcoco", [reference(0, 11, 1, "val", "x")], SEGMENTATIONS, [1], file_name="{}.png"
    )
    assert np.array_equal(RefCoco(tmp_path, "val")[0].image, seeded_image(1))


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize(
    "content",
    [
        partial(Payload),
        lambda path: [{"sentences": Payload(path)}],
        lambda path: collections.OrderedDict(a=1),
    ],
)
def test_a_pickle_that_names_code_is_refused_and_not_run(tmp_path, content):
    path = tmp_path / "refs(unc).p"
    path.write_bytes(pickle.dumps(content(tmp_path / "hacked")))
    with pytest.raises(ValueError, match=r"refs\(unc\)\.p is refused: it names"):
        load_plain_pickle(path)
    assert not (tmp_path / "hacked").exists()


def test_every_opcode_that_calls_or_imports_is_refused(tmp_path):
    path = tmp_path / "refs.p"
    for attack in (
        b"cos\nsystem\n(S'true'\ntR.",
        b"(S'true'\nios\nsystem\n.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R.",
        b"Pevil\n.",
        b"\x80\x02\x82\x01.",
    ):
        path.write_bytes(attack)
        with pytest.raises(ValueError, match="refused"):
            load_plain_pickle(path)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_pickles_of_every_protocol_are_read(tmp_path, protocol):
    content = [{"a": [1, 2.5, None, True], "b": ("x", "ü"), "c": {1}, "d": 2**70, "e": b"bytes"}]
    plain = [{**content[0], "c": [1], "e": "text"}] if protocol < 4 else content
    (tmp_path / "a.p").write_bytes(pickle.dumps(plain, protocol=protocol))
    assert load_plain_pickle(tmp_path / "a.p") == plain


def test_pickles_of_python_2_and_damaged_ones(tmp_path):
    (tmp_path / "old.p").write_bytes(b"(lp0\n(dp1\nS'sent'\np2\nS'left gir\\xc3\\xa4ffe'\np3\nsa.")
    assert load_plain_pickle(tmp_path / "old.p") == [{"sent": "left giräffe"}]
    (tmp_path / "cut.p").write_bytes(pickle.dumps(list(range(1000)))[:-9])
    with pytest.raises(ValueError, match=r"cut\.p is refused"):
        load_plain_pickle(tmp_path / "cut.p")


def test_numbers_and_texts_are_the_same_ids(tmp_path):
    write_refcoco(tmp_path)
    folder = tmp_path / "refer_seg/refcoco"
    refs = pickle.loads((folder / "refs(unc).p").read_bytes())
    refs[0] |= {"ann_id": "11", "image_id": 1.0}
    refs[1] |= {"ann_id": [12.0], "image_id": "1"}
    (folder / "refs(unc).p").write_bytes(pickle.dumps(refs))
    instances = json.loads((folder / "instances.json").read_text())
    for entry in (*instances["annotations"], *instances["images"]):
        entry["id"] = str(entry["id"])
    (folder / "instances.json").write_text(json.dumps(instances))
    first = RefCoco(tmp_path, "train")[0]
    assert first.expressions == ("the left box", "small one", "the right box")
    assert np.array_equal(first.masks, [mask_of(LEFT), mask_of(LEFT), mask_of(RIGHT)])


def test_a_number_that_crashes_decoders_is_a_skip(tmp_path, recipe):
    refs = [reference(0, 11, 1, "train", "the box")]
    write_refer(tmp_path, "refcoco", refs, {11: [[1e8, 2, 9, 2, 9, 12]]}, [1])
    with pytest.raises(
        UnusableItemError, match=r"annotations \[11\]: a coordinate is 1e\+08, more than 10 sides"
    ):
        RefCoco(tmp_path, "train").draw(np.random.default_rng(0), recipe)
