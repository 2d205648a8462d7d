"""Free text to class names, by hand."""

from __future__ import annotations

import pytest
import torch

from model.generation.answers import NameCounts, NameMatcher, match_mentions, read_answer
from model.text.format import SequenceFormat
from tests.told_answers import answer_of

NAMES = ("traffic light", "tree", "car", "cat", "dining table", "sky-other", "c++")


@pytest.mark.parametrize(
    ("mention", "name", "exact"),
    [
        ("tree", "tree", True),
        ("  The  Tree.", "tree", True),
        ("and a car", "car", True),
        ("sky other", "sky-other", True),
        ("C++", "c++", True),
        ("trafic light", "traffic light", False),
        ("trees", "tree", False),  # 1 edit in 5 letters
        ("the dinning table", "dining table", False),
    ],
)
def test_a_mention_is_matched_exactly_after_normalising_or_by_edit_distance(mention, name, exact):
    match = NameMatcher(NAMES).find(mention)
    assert match is not None
    assert (NAMES[match.index], match.exact) == (name, exact)


@pytest.mark.parametrize(
    "mention", ["", " , ", "the", "unicorn", "cap", "cars and trees", "table", "car[sky"]
)
def test_what_is_near_to_nothing_is_not_pressed_into_a_class(mention):
    assert NameMatcher(NAMES).find(mention) is None


def test_two_equally_near_names_match_none_and_distance_zero_matches_only_exactly():
    matcher = NameMatcher(["red ball 1", "red ball 2"])
    assert matcher.find("red ball 3") is None
    assert matcher.find("red ball 1").index == 0
    assert NameMatcher(NAMES, max_distance=0).find("trees") is None
    assert NameMatcher(NAMES, max_distance=0.5).find("cap") is None  # car and cat alike


def test_names_that_cannot_be_told_apart_and_distances_without_meaning_are_refused():
    with pytest.raises(ValueError, match="differ only in case or spaces: sky other"):
        NameMatcher(["sky-other", "Sky other"])
    with pytest.raises(ValueError, match=r"got 1\.5"):
        NameMatcher(NAMES, max_distance=1.5)


def test_an_answer_merges_duplicates_by_maximum_and_keeps_hallucinations_apart():
    mentions = SequenceFormat.named("paper").parse(
        "tree [SEG], unicorn [SEG], trees [SEG], car [NEG], Tree [NEG], dragon [NEG]."
    )
    masks = torch.tensor([[[3.0, -1.0, 0.0]], [[9.0, 9.0, 9.0]], [[-2.0, 4.0, 0.0]]])
    answer = match_mentions(mentions, masks, NameMatcher(NAMES))
    assert answer.found == (1,)
    assert answer.masks.tolist() == [[[3.0, 4.0, 0.0]]]
    assert answer.counts == NameCounts(
        num_exact=3,  # tree, car, Tree
        num_near=1,  # trees
        num_repeated=2,
        num_unanswered=5,
        unmatched=("unicorn", "dragon"),
    )
    assert answer.counts.num_mentions == 6


def test_a_lone_name_takes_every_mask_of_an_answer_that_does_not_name_it():
    masks = torch.tensor([[[1.0, -1.0]], [[-1.0, 2.0]]])
    formats = {name: SequenceFormat.named(name) for name in ("lisa", "paper")}
    said = answer_of("It is [SEG] and [SEG].", masks, formats["lisa"])
    read = read_answer(said, ["tree"], formats["lisa"])
    assert read.found == (0,)
    assert read.masks.tolist() == [[[1.0, 2.0]]]
    assert read_answer(said, ["tree", "car"], formats["lisa"]).found == ()
    assert read_answer(said, ["tree"], formats["paper"]).found == ()


def test_counts_add_up():
    one = NameCounts(num_exact=1, num_near=2, num_repeated=3, num_unanswered=4, unmatched=("a",))
    assert NameCounts.total([one, one]) == NameCounts(
        num_exact=2, num_near=4, num_repeated=6, num_unanswered=8, unmatched=("a", "a")
    )
    assert NameCounts.total([]) == NameCounts()
