from __future__ import annotations

import numpy as np
import pytest

from model.text.format import SequenceFormat
from model.text.phrases import phrases
from model.text.sequence import (
    complex_conversation,
    reasoning_conversation,
    reasoning_query,
    referring_conversation,
    referring_query,
)
from model.text.special_tokens import INS, NEG, SEG, Special

PAPER = SequenceFormat.named("paper")
PRESENT = ["person", "sky", "dog"]
ABSENT = [f"class {i}" for i in range(20)]
CLASS_LIST = sorted([*PRESENT, *ABSENT])


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def written(conversation) -> tuple[str, str]:
    user, assistant = conversation.turns
    return str(user), str(assistant)


def asked_classes(query: str) -> list[str]:
    return query.removeprefix("Can you segment the ").removesuffix(" in this image?").split(", ")


def test_paper_format_is_the_one_of_the_design():
    choices = [("person", True), ("tree", True), ("dog", False), ("sky", True)]
    query = PAPER.query([name for name, _ in choices])
    assert "".join(query) == "Can you segment the person, tree, dog, sky in this image?"
    assert "".join(PAPER.answer(choices)) == "person [SEG], tree [SEG], dog [NEG], sky [SEG]."


def test_release_format_is_the_one_of_the_published_weights():
    release = SequenceFormat.named("release")
    query = "".join(release.query(["a", "b", "c"]))
    assert query == "<semantic>Segment this image.<cat_start> a, b, c <cat_end>"
    assert "".join(release.answer([("a", True), ("b", False), ("c", True)])) == "a<ins>b<no_ins>c<ins>"


def test_only_the_formats_own_tokens_are_special():
    pieces = [*PAPER.query(["[SEG]", "x"]), *PAPER.answer([("[SEG]", True), ("<image>", False)])]
    assert [piece for piece in pieces if isinstance(piece, Special)] == [SEG, NEG]


@pytest.mark.parametrize("name", ["paper", "release"])
def test_an_answer_is_parsed_to_its_choices(name: str):
    format = SequenceFormat.named(name)
    choices = [("person", True), ("chest of drawers", False), ("table, round", True), ("sky-other", False)]
    assert format.parse("".join(format.answer(choices))) == choices
    assert format.parse("I see nothing.") == []
    assert format.parse(f"{format.seg}{format.seg}") == [("", True), ("", True)]


def test_class_names_are_written_in_lower_case_with_single_spaces():
    assert "".join(PAPER.answer([("Traffic  Light", True)])) == "traffic light [SEG]."
    with pytest.raises(ValueError, match="empty"):
        PAPER.query(["person", " "])


def test_a_random_list_names_all_present_classes_and_no_more_than_allowed():
    lengths = set()
    for seed in range(60):
        conversation, names = complex_conversation(PRESENT, ABSENT, rng(seed), PAPER, 10)
        query, answer = written(conversation)
        asked = asked_classes(query)
        lengths.add(len(asked))
        assert len(asked) == len(set(asked)) <= 10
        assert set(PRESENT) <= set(asked) <= set(CLASS_LIST)
        assert PAPER.parse(answer) == [(name, name in PRESENT) for name in asked]
        assert names == [name for name in asked if name in PRESENT]
        assert conversation.num_seg == len(names)
    assert lengths == set(range(3, 11))


def test_more_present_classes_than_allowed_are_a_random_choice_of_them():
    conversation, names = complex_conversation(ABSENT, PRESENT, rng(), PAPER, 5)
    assert len(names) == conversation.num_seg == 5
    assert len(asked_classes(written(conversation)[0])) == 5


def test_a_sample_is_a_pure_function_of_its_random_generator():
    once, again = (
        [complex_conversation(PRESENT, ABSENT, rng(i), PAPER, 10) for i in range(30)] for _ in "ab"
    )
    assert once == again
    assert len({str(conversation) for conversation, _ in once}) > 20


def test_a_query_can_be_asked_with_fewer_absent_classes():
    query, names = complex_conversation(PRESENT, ABSENT, rng(1), PAPER, 12)
    asked = asked_classes(written(query)[0])
    absent = [name for name in asked if name in ABSENT]
    assert sorted(query.absent) == sorted(absent)
    assert query.with_num_absent(len(absent)) == query
    for number in range(len(absent) + 1):
        shorter = query.with_num_absent(number)
        kept = asked_classes(written(shorter)[0])
        assert kept == [name for name in asked if name in kept], "the order stays"
        assert set(kept) == {*PRESENT, *query.absent[:number]}
        assert PAPER.parse(written(shorter)[1]) == [(name, name in PRESENT) for name in kept]
        assert shorter.num_seg == len(names)
        assert shorter.with_num_absent(0) == query.with_num_absent(0)
    assert query.min_absent == 0
    assert complex_conversation([], ABSENT, rng(), PAPER, 4)[0].min_absent == 1


def test_without_random_classes_list_the_whole_list_is_asked_in_its_order():
    format = SequenceFormat.named("paper", random_classes_list=False)
    conversation, names = complex_conversation(PRESENT, ABSENT, rng(), format, 5, class_list=CLASS_LIST)
    query, answer = written(conversation)
    assert asked_classes(query) == CLASS_LIST
    assert PAPER.parse(answer) == [(name, name in PRESENT) for name in CLASS_LIST]
    assert names == sorted(PRESENT)
    # A class of which nothing is known is not asked.
    conversation, _ = complex_conversation(PRESENT, ABSENT[1:], rng(), format, 5, class_list=CLASS_LIST)
    assert asked_classes(written(conversation)[0]) == [name for name in CLASS_LIST if name != ABSENT[0]]
    with pytest.raises(ValueError, match="class_list"):
        complex_conversation(PRESENT, ABSENT, rng(), format)
    with pytest.raises(ValueError, match="zebra"):
        complex_conversation(["zebra"], ABSENT, rng(), format, class_list=CLASS_LIST)


def test_without_sequence_augmentation_only_present_classes_are_answered():
    format = SequenceFormat.named("paper", sequence_augmentation=False)
    conversation, names = complex_conversation(PRESENT, ABSENT, rng(3), format, 10)
    query, answer = written(conversation)
    assert len(asked_classes(query)) > len(PRESENT)
    assert PAPER.parse(answer) == [(name, True) for name in asked_classes(query) if name in PRESENT]
    assert names == [name for name, _ in PAPER.parse(answer)]
    nothing, names = complex_conversation([], ABSENT, rng(), format, 10)
    assert (nothing.num_seg, names) == (0, [])


def test_without_order_following_the_answer_has_the_same_classes_in_another_order():
    format = SequenceFormat.named("paper", order_following=False)
    conversation, names = complex_conversation(PRESENT, ABSENT, rng(4), format, 12)
    query, answer = written(conversation)
    answered = [name for name, _ in PAPER.parse(answer)]
    assert sorted(answered) == sorted(asked_classes(query))
    assert answered != asked_classes(query)
    assert names == [name for name in answered if name in PRESENT]


def test_a_class_named_twice_or_no_class_is_an_error():
    for present, absent in ((["dog", "Dog"], []), (["dog"], ["dog"])):
        with pytest.raises(ValueError, match="dog"):
            complex_conversation(present, absent, rng(), PAPER)
    with pytest.raises(ValueError, match="at least one class"):
        complex_conversation([], [], rng(), PAPER)
    with pytest.raises(ValueError, match="num_all_classes"):
        complex_conversation(PRESENT, [], rng(), PAPER, 0)


def test_hard_negatives_get_their_fraction_of_the_absent_classes():
    hard = ABSENT[-3:]

    def absent_of(seed, **more):
        query, _ = complex_conversation(PRESENT, ABSENT, rng(seed), PAPER, 12, **more)
        return [name for name, there in PAPER.parse(written(query)[1]) if not there]

    for seed in range(20):
        uniform, half = absent_of(seed), absent_of(seed, hard_negatives=hard, hard_negative_fraction=0.5)
        assert len(half) == len(uniform)  # as many as without, and of them at least half if there are so many
        assert len(set(half) & set(hard)) >= min(round(len(half) / 2), len(hard))
        assert absent_of(seed, hard_negatives=hard, hard_negative_fraction=0.0) == uniform
        assert len(set(half)) == len(half)


def test_a_query_with_only_absent_classes_is_answered_with_neg():
    conversation, names = complex_conversation([], ABSENT, rng(), PAPER, 4)
    assert names == []
    assert "[NEG]" in written(conversation)[1]


def test_lisa_weights_answer_present_classes_only():
    lisa = SequenceFormat.named("lisa")
    assert not lisa.sequence_augmentation
    conversation, names = complex_conversation(PRESENT, ABSENT, rng(), lisa, 10)
    assert sorted(names) == sorted(PRESENT)
    assert conversation.num_seg == 3
    with pytest.raises(ValueError, match="absent"):
        lisa.answer([("dog", False)])
    with pytest.raises(ValueError, match="sequence_augmentation"):
        SequenceFormat(name="lisa", seg=SEG, neg=None)


def test_formats_survive_a_config_file_and_know_whether_answers_are_fixed():
    for name in ("paper", "release", "lisa"):
        for switches in ({}, {"order_following": False}, {"random_classes_list": False}):
            format = SequenceFormat.named(name, **switches)
            assert SequenceFormat.from_dict(format.to_dict()) == format
            assert format.answers_every_class == (name != "lisa" and format.order_following)
    assert not SequenceFormat.named("paper", sequence_augmentation=False).answers_every_class
    with pytest.raises(ValueError, match="lisa, paper, release"):
        SequenceFormat.named("llava")


def test_there_are_a_dozen_different_phrases_of_each_kind_with_their_slots():
    slots = {"referring_query": "{expression}", "target_answer": "{seg}", "no_target_answer": " {seg}"}
    for kind, entries in phrases().items():
        assert len(entries) == len(set(entries)) >= 12
        assert all(entry.count(slots.get(kind, "")) == 1 for entry in entries if kind in slots)


@pytest.mark.parametrize(("has_target", "token"), [(True, INS), (False, "<no_ins>")])
def test_referring_answers_hold_one_token(has_target: bool, token: str):
    format = SequenceFormat.named("release")
    seen = set()
    for seed in range(80):
        conversation = referring_conversation("the {seg} [SEG]  dog", has_target, rng(seed), format)
        query, _ = written(conversation)
        assert "the {seg} [SEG] dog" in query
        specials = [piece for piece in conversation.turns[1].text if isinstance(piece, Special)]
        assert specials == [token]
        seen.add(written(conversation)[1])
    assert len(seen) >= 12


def test_a_format_without_neg_says_no_target_in_words():
    conversation = referring_conversation("a dog", False, rng(), SequenceFormat.named("lisa"))
    assert conversation.num_seg == 0
    assert "{" not in written(conversation)[1]


def test_reasoning_samples_ask_and_explain():
    query, answer = written(reasoning_conversation("Who is late?", True, None, rng(), PAPER))
    assert query.startswith("Who is late? ")
    assert answer.count(SEG) == 1
    query, answer = written(reasoning_conversation("the late one", False, "He runs.", rng(), PAPER))
    assert query.startswith("What is the late one in this image? ")
    assert answer.endswith(" He runs.")


def test_evaluation_words_its_questions_always_the_same():
    assert referring_query("the dog") == ("Can you segment the dog in this image?",)
    assert reasoning_query("Who?", True) == ("Who? Please output the segmentation mask.",)
    assert reasoning_query("a dog", False) == (
        "What is a dog in this image? Please output the segmentation mask.",
    )
    assert "".join(PAPER.found()) == "It is [SEG]."
