"""R-RefCOCO and FP-RefCOCO: which sentences describe nothing, and that their references keep the others' target."""

from __future__ import annotations

import numpy as np
import pytest

from model.text.special_tokens import NEG, SEG
from tests.utils.data.layouts import box_polygon, reference, write_refer
from utils.data.datasets.refer import RefCoco
from utils.data.datasets.refer_absent import FpRefCoco, FpRefCocoPlus, RRefCoco, RRefCocoG, RRefCocoPlus
from utils.data.registry import DATASETS, build_val_dataset

SEGMENTATIONS = {11: [box_polygon(1, 2, 8, 10)], 12: [box_polygon(20, 4, 9, 12)]}
FP_FILE = "refs(berkeley_exclude_unified).p"


def marked(ref, *marks):
    """A reference whose k-th sentence has these further keys."""
    for sentence, mark in zip(ref["sentences"], marks, strict=True):
        sentence |= mark
    return ref


def write_r(root, *refs, folder="R-refcoco", refs_file="refs(unc).p"):
    write_refer(root, folder, list(refs), SEGMENTATIONS, [1, 2], refs_file=refs_file)


def robust(split="val"):
    yes, no = {"exist": True}, {"exist": False}
    return (
        marked(reference(0, 11, 1, split, "the left box", "a giraffe", "left"), yes, no, yes),
        marked(reference(1, 12, 1, split, "the right box", "a zebra", "a bus"), yes, no, no),
    )


def test_sentences_that_do_not_exist_have_no_target_and_the_others_of_their_reference_have(tmp_path):
    write_r(tmp_path, *robust())
    (sample,) = RRefCoco(tmp_path, "val")
    assert sample.expressions == ("the left box", "a giraffe", "left", "the right box", "a zebra", "a bus")
    assert sample.no_target == (False, True, False, False, True, True)
    assert sample.references == (0, 0, 0, 1, 1, 1)
    assert [bool(mask.any()) for mask in sample.masks] == [True, False, True, True, False, False]
    assert np.array_equal(sample.masks[0], sample.masks[2])
    assert not np.array_equal(sample.masks[0], sample.masks[3])
    assert RRefCoco(tmp_path, "val").has_no_target


def test_false_premises_are_marked_the_other_way_round(tmp_path):
    true, false = {"is_false_premise": False}, {"is_false_premise": True, "gt_sent": "the left box"}
    refs = [marked(reference(0, 11, 1, "val", "the left box", "the left ball"), true, false)]
    for reader in (FpRefCoco, FpRefCocoPlus):
        write_refer(tmp_path, reader.name, refs, SEGMENTATIONS, [1], refs_file=FP_FILE)
        (sample,) = build_val_dataset(reader.name, tmp_path)
        assert sample.no_target == (False, True)
        assert reader.source == "neg_refer_seg"


def test_a_sentence_without_a_mark_has_a_target_and_a_false_premise_outranks_existence(tmp_path):
    ref = marked(
        reference(0, 11, 1, "val", "plain", "false", "true"),
        {},
        {"is_false_premise": True, "exist": True},
        {"is_false_premise": False, "exist": False},
    )
    write_r(tmp_path, ref)
    assert RRefCoco(tmp_path, "val")[0].no_target == (False, True, False)


def test_training_answers_negative_sentences_with_neg(tmp_path, recipe):
    write_r(tmp_path, *robust("train"))
    sample = RRefCoco.open(tmp_path, (), training=True).draw(np.random.default_rng(0), recipe)
    assert len(sample.conversations) == 5
    for conversation in sample.conversations:
        absent = any(word in str(conversation.turns[0]) for word in ("giraffe", "zebra", "bus"))
        assert (NEG in conversation.answers[0]) == absent
        assert (SEG in conversation.answers[0]) != absent
    assert len(sample.masks) == sum(conversation.num_seg for conversation in sample.conversations)


@pytest.mark.parametrize(
    ("reader", "folder", "refs_file", "fields"),
    [
        (RRefCoco, "rrefcoco", "refs(unc).p", ()),
        (RRefCocoPlus, "rrefcoco+", "refs(unc).p", ("val",)),
        (RRefCocoG, "rrefcocog", "refs(umd).p", ("umd", "val")),
        (RRefCoco, "R-refcoco", "refs(unc_exclude_unified).p", ("unc_exclude_unified",)),
        (RRefCocoG, "R-refcocog", "refs(umd_exclude_unified).p", ("umd_exclude_unified", "val")),
    ],
)
def test_the_folders_and_files_of_both_publications_are_read(tmp_path, reader, folder, refs_file, fields):
    write_r(tmp_path, *robust(), folder=folder, refs_file=refs_file)
    assert len(reader.open(tmp_path, fields)) == 1


def test_references_of_another_author_are_not_taken_silently(tmp_path):
    write_r(tmp_path, *robust(), refs_file="refs(unc_exclude_unified).p")
    with pytest.raises(
        FileNotFoundError, match=r"needs .*refs\(unc\)\.p.*holds instances\.json, refs\(unc_exclude"
    ):
        RRefCoco.open(tmp_path, ())


@pytest.mark.parametrize("value", ["no", None, 2, 0.5, [False], {"a": 1}])
def test_a_mark_that_is_neither_true_nor_false_drops_its_reference_with_the_rule(tmp_path, value):
    good, bad = robust()
    bad["sentences"][1]["exist"] = value
    write_r(tmp_path, good, bad)
    dataset = RRefCoco(tmp_path, "val")
    assert dataset[0].expressions == ("the left box", "a giraffe", "left")
    (reason,) = dataset.dropped
    assert "refs(unc).p, reference 1: 'exist' is " in reason
    assert reason.endswith("; it is true or false")


def test_numbers_0_and_1_are_marks_too(tmp_path):
    ref = marked(reference(0, 11, 1, "val", "box", "bus"), {"exist": 1}, {"exist": 0})
    write_r(tmp_path, ref)
    assert RRefCoco(tmp_path, "val")[0].no_target == (False, True)


def test_an_annotation_that_only_false_sentences_name_is_not_needed(tmp_path):
    write_r(
        tmp_path,
        marked(reference(0, 99, 1, "val", "a bus"), {"exist": False}),
        marked(reference(1, 99, 1, "val", "a box", "a bus"), {"exist": True}, {"exist": False}),
    )
    dataset = RRefCoco(tmp_path, "val")
    assert dataset[0].expressions == ("a bus",)
    assert "no annotation [99]" in dataset.dropped[0]


def test_a_file_without_any_mark_is_noted(tmp_path, caplog):
    write_r(tmp_path, reference(0, 11, 1, "val", "box"))
    dataset = RRefCoco(tmp_path, "val")
    (note,) = dataset.notes
    assert note == ("no sentence is marked as absent by 'is_false_premise' or 'exist'; is it plain RefCOCO?")
    assert note in caplog.text


def test_a_pickle_that_names_code_is_refused(tmp_path):
    write_r(tmp_path, *robust())
    (tmp_path / "refer_seg/R-refcoco/refs(unc).p").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(ValueError, match=r"refs\(unc\)\.p is refused"):
        RRefCoco(tmp_path, "val")


def test_plain_references_are_of_their_references_too(tmp_path):
    refs = [
        reference(0, 11, 1, "val", "a", "b"),
        reference(1, 12, 1, "train", "c"),
        reference(2, 12, 1, "val", "d"),
    ]
    write_refer(tmp_path, "refcoco", refs, SEGMENTATIONS, [1])
    (sample,) = RefCoco(tmp_path, "val")
    assert sample.references == (0, 0, 2)


def test_all_six_are_known_by_their_names():
    names = {name for name, dataset in DATASETS.items() if dataset.source == "neg_refer_seg"}
    assert names == {f"{prefix}refcoco{end}" for prefix in ("R-", "fp") for end in ("", "+", "g")}
