"""Ref-ZOM: no target, one or many; images in one folder or two."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from model.text.special_tokens import NEG, SEG
from tests.utils.data.layouts import box_polygon, reference, save, seeded_image, write_refer
from utils.data.datasets.refer import RefCoco
from utils.data.datasets.refzom import RefZom
from utils.data.registry import build_val_dataset
from utils.data.val_datasets import known_entries

LEFT, RIGHT = box_polygon(1, 2, 8, 10), box_polygon(20, 4, 9, 12)
SEGMENTATIONS = {11: [LEFT], 12: [RIGHT]}
NAMES = {1: "COCO_train2014_000000000001.jpg", 2: "COCO_train2014_000000000002.jpg"}


def zom(source, *arguments):
    ref = reference(*arguments)
    return ref if source is None else {**ref, "source": source}


def references(split="test"):
    return [
        zom("one", 0, 11, 1, split, "the left box", "left"),
        zom("many", 1, [11, 12], 1, split, "both boxes"),
        zom("zero", 2, [], 1, split, "a giraffe"),
        zom("zero", 3, [12], 1, split, "a zebra"),
        zom("zero", 4, 11, 2, split, "a bus"),
        zom(None, 5, 12, 2, split, "the right box"),
    ]


def write(root, refs, folder="refzom", refs_file="Ref_ZOM.p", where=None):
    """By default the images are in train2014 beside the references."""
    write_refer(root, folder, refs, SEGMENTATIONS, [1, 2], refs_file=refs_file)
    shared = root / "refer_seg/images/mscoco/images/train2014"
    for number, place in (where or dict.fromkeys(NAMES, f"refer_seg/{folder}/train2014")).items():
        (shared / NAMES[number]).unlink()
        save(root / place / NAMES[number], seeded_image(number))
    if not list(shared.iterdir()):
        shared.rmdir()


def test_a_source_of_zero_has_no_target_whatever_annotations_it_names(tmp_path):
    write(tmp_path, references())
    dataset = build_val_dataset("refzom", tmp_path)
    first, second = dataset
    assert first.expressions == ("the left box", "left", "both boxes", "a giraffe", "a zebra")
    assert first.no_target == (False, False, False, True, True)
    assert first.references == (0, 0, 1, 2, 3)
    left, _, both, giraffe, zebra = first.masks
    assert 0 < left.sum() < both.sum()
    assert np.array_equal(both, left | second.masks[1])
    assert not giraffe.any()
    assert not zebra.any()
    assert second.no_target == (True, False)
    assert (dataset.dropped, dataset.has_no_target) == ([], True)


def test_training_answers_each_kind(tmp_path, recipe):
    write(tmp_path, references("train"))
    sample = RefZom.open(tmp_path, ("final", "train")).sample_of(0, np.random.default_rng(0), recipe)
    assert len(sample.conversations) == 5
    for conversation in sample.conversations:
        absent = any(word in str(conversation.turns[0]) for word in ("giraffe", "zebra"))
        assert (NEG in conversation.answers[0], SEG in conversation.answers[0]) == (absent, not absent)


@pytest.mark.parametrize(
    ("folder", "refs_file"),
    [("refzom", "Ref_ZOM.p"), ("ref-zom", "refs(final).p"), ("ref-zom", "Ref-ZOM(final).p")],
)
@pytest.mark.parametrize(
    "where",
    [
        {1: "refer_seg/FOLDER/train2014", 2: "refer_seg/FOLDER/val2014"},
        {1: "refer_seg/FOLDER/trainval2014", 2: "refer_seg/FOLDER/trainval2014"},
        {2: "refer_seg/images/mscoco/images/val2014"},
        {1: "refer_seg/images/mscoco/images/trainval2014", 2: "refer_seg/images/mscoco/images/trainval2014"},
    ],
    ids=["two folders", "merged", "with RefCOCO's", "merged with RefCOCO's"],
)
def test_every_way_to_store_it_is_read(tmp_path, folder, refs_file, where):
    places = {number: place.replace("FOLDER", folder) for number, place in where.items()}
    write(tmp_path, references(), folder, refs_file, places)
    dataset = RefZom.open(tmp_path, ("test",))
    assert len(dataset) == 2
    assert dataset.items[1].path == tmp_path / places[2] / NAMES[2]
    assert dataset[1].image.shape == seeded_image(2).shape


def test_images_that_are_nowhere_are_named_with_every_place_that_was_searched(tmp_path):
    write(tmp_path, references())
    for number in NAMES:
        (tmp_path / "refer_seg/refzom/train2014" / NAMES[number]).unlink()
    (tmp_path / "refer_seg/refzom/train2014").rmdir()
    with pytest.raises(FileNotFoundError) as problem:
        RefZom(tmp_path, "test")
    for place in ("refzom/trainval2014 or", "refzom/train2014 or", "mscoco/images/val2014;"):
        assert place in str(problem.value)


def test_half_of_the_images_are_counted_as_missing(tmp_path):
    write(tmp_path, references())
    (tmp_path / "refer_seg/refzom/train2014" / NAMES[2]).unlink()
    dataset = RefZom(tmp_path, "test")
    assert str(dataset.coverage) == "4 of 6 references; 2 missing"


def test_a_target_that_is_not_named_is_no_absent_target(tmp_path):
    for source in ("one", "many", None, "Zero"):
        write(tmp_path, [*references(), zom(source, 9, [], 1, "test", "what?")])
        dataset = RefZom(tmp_path, "test")
        (reason,) = dataset.dropped
        assert reason.endswith(f"reference 6: no annotation, but 'source' is {source!r}, not 'zero'")


def test_sentences_may_have_their_raw_text_alone(tmp_path):
    refs = references()
    for sentence in refs[0]["sentences"]:
        del sentence["sent"]
    write(tmp_path, refs)
    assert RefZom(tmp_path, "test")[0].expressions[:2] == ("The Left Box", "Left")


def test_a_sentence_that_is_no_text_drops_its_reference(tmp_path):
    refs = references()
    refs[0]["sentences"][0] = {"sent": 5}
    refs[1]["sentences"] = [{"tokens": []}]
    write(tmp_path, refs)
    dataset = RefZom(tmp_path, "test")
    assert dataset[0].expressions == ("a giraffe", "a zebra")
    assert ["reference 0" in dataset.dropped[0], "reference 1" in dataset.dropped[1]] == [True, True]
    assert "'raw'" in dataset.dropped[1]


def test_a_pickle_that_names_code_is_refused(tmp_path):
    write(tmp_path, references())
    (tmp_path / "refer_seg/refzom/Ref_ZOM.p").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(ValueError, match=r"Ref_ZOM\.p is refused"):
        RefZom(tmp_path, "test")


def test_there_is_no_val_split(tmp_path):
    with pytest.raises(ValueError, match="refzom has no split 'val'; known: train, test"):
        build_val_dataset("refzom|val", tmp_path)
    entries = [str(entry) for entry in known_entries()]
    assert [entry for entry in entries if "refzom" in entry] == ["refzom|final|test"]


def test_other_referring_data_reads_no_source(tmp_path):
    refs = [zom("zero", 0, 11, 1, "val", "the left box")]
    write_refer(tmp_path, "refcoco", refs, SEGMENTATIONS, [1])
    assert RefCoco(tmp_path, "val")[0].no_target == (False,)
    assert pickle.loads((tmp_path / "refer_seg/refcoco/refs(unc).p").read_bytes())[0]["source"] == "zero"
