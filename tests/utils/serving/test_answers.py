"""Questions and answers: names as they are typed, text while it comes, follow-ups, other thresholds."""

from __future__ import annotations

import pytest
import torch

from model.errors import UserError
from model.generation.sampling import Sampling
from model.text.special_tokens import SEG, Special
from tests.tiny_weights import noise_image
from utils.serving.answers import Asking, ask_classes, ask_in_words, split_names
from utils.serving.session import Session

IMAGE = noise_image(40, 60)
NAMES = ["dog", "tree", "pool table", "sky", "road"]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("person, Tree ,tree,", ["person", "tree"]),
        ('dog, "traffic light, red" , sky', ["dog", "traffic light, red", "sky"]),
        ('"a ""quoted"" name"', ['a "quoted" name']),
        ("5\" pipe, o'brien", ['5" pipe', "o'brien"]),
        ("🐕, <b>bold</b>,[SEG],</s>", ["🐕", "<b>bold</b>", "[seg]", "</s>"]),
        ("two\nlines", ["two lines"]),
        ("x" * 200_000, ["x" * 200_000]),
    ],
)
def test_names_are_separated_by_commas_outside_of_quotes(text, names):
    assert split_names(text) == names


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (" , ", "has no class name"),
        ("", "has no class name"),
        ('dog, "cat', "is closed"),
        ('"a" b', "is closed"),
    ],
)
def test_names_that_are_none_are_refused(text, message):
    with pytest.raises(UserError, match=message):
        split_names(text)


@pytest.mark.parametrize(
    "name", ["traffic light, red", 'a "quoted" name', "🐕", "<b>bold</b>", "[seg]", "</s>", "<image>", "x'y"]
)
def test_odd_names_are_asked_and_answered_as_they_are(tiny, name):
    answer = ask_classes(tiny, IMAGE, ["dog", name], Asking())
    assert [one.label for one in answer.classes] == ["dog", name]
    assert len(answer.names) == len(answer.masks)
    [question, said] = answer.turns
    encoded = tiny.processor.encode(tiny.processor.plan(["dog", name])[0])
    eos, seg = tiny.processor.token_ids.eos, tiny.processor.token_ids.seg
    assert encoded.input_ids.count(seg) == encoded.input_ids.count(eos) == 0
    assert sum(isinstance(piece, Special) for piece in said.text) == 2
    assert name in str(question)


def test_five_hundred_classes_are_asked_in_parts(tiny):
    names = [f"thing {number}" for number in range(500)]
    answer = ask_classes(tiny, IMAGE, names, Asking())
    assert [one.label for one in answer.classes] == names
    assert len(answer.turns) == 2 * 7  # 80 a query
    assert {one.label for one in answer.classes if one.present} == set(answer.names)


def test_the_text_comes_in_parts_and_names_are_those_of_the_question(says):
    model = says("The dog ", Special(SEG), " and ", Special(SEG), ".")
    parts = []
    answer = ask_in_words(model, IMAGE, "Where is the dog?", Asking(), on_text=parts.append)
    assert "".join(parts) == answer.text == "The dog [SEG] and [SEG]."
    assert len(parts) > 3
    assert answer.names == ("The dog", "")
    assert answer.is_complete
    cut = ask_in_words(model, IMAGE, "Where?", Asking(max_new_tokens=2))
    assert not cut.is_complete


def test_a_question_is_asked_behind_the_turns_before_it(says, monkeypatch):
    model = says("dog ", Special(SEG), ".")
    asked = []
    chat = model.chat
    monkeypatch.setattr(
        model, "chat", lambda image, talk, **rest: (asked.append(talk), chat(image, talk, **rest))[1]
    )
    session = Session(model=model, asking=Asking())
    session.open(IMAGE)
    first = session.ask("Where is the dog?")
    assert first.names == ("dog",)
    session.segment(["sky", "tree"])
    session.ask("Which is larger?")
    roles = [turn.role for turn in asked[-1].turns]
    assert roles == ["user", "assistant"] * 2 + ["user"]
    texts = [str(turn) for turn in asked[-1].turns]
    assert texts[0] == "Where is the dog?"
    assert texts[2] == "Can you segment the sky, tree in this image?"
    assert asked[-1].turns[1].token_ids == first.turns[1].token_ids
    assert asked[-1].num_seg >= 1
    session.forget()
    session.ask("Why?")
    assert len(asked[-1].turns) == 1


def test_another_image_begins_anew_and_what_fails_leaves_everything_as_it_was(says):
    session = Session(model=says("yes"), asking=Asking())
    with pytest.raises(UserError, match="no image yet"):
        session.ask("Why?")
    session.open(IMAGE)
    session.ask("Is it?")
    with pytest.raises(UserError):
        session.ask("word " * 9000)
    assert len(session.answers) == 1
    with pytest.raises(ValueError, match="uint8"):
        session.open(IMAGE.astype(float))
    assert len(session.answers) == 1
    session.open(noise_image(20, 20))
    assert session.history == ()


def test_a_threshold_decides_the_last_classes_again(tiny, monkeypatch):
    session = Session(model=tiny, asking=Asking())
    session.open(IMAGE)
    assert session.set_threshold(0.5) is None
    first = session.segment(NAMES)
    monkeypatch.setattr(tiny, "language_states", lambda *_, **__: pytest.fail("a pass"))
    probabilities = [one.probability for one in first.classes]
    for threshold in (0.0, sorted(probabilities)[2], 1.0):
        again = session.set_threshold(threshold)
        assert [one.present for one in again.classes] == [p >= threshold for p in probabilities]
        assert len(again.masks) == sum(one.present for one in again.classes)
        assert session.answers == [again]
        assert again.text.count("[SEG]") == len(again.masks)
    assert session.asking.presence_threshold == 1.0
    with pytest.raises(UserError, match="0 to 1"):
        session.set_threshold(2)


def test_questions_of_a_conversation_are_drawn_differently_and_reproducibly(tiny):
    def texts():
        session = Session(
            model=tiny, asking=Asking(max_new_tokens=6, sampling=Sampling(temperature=2.0, seed=3))
        )
        session.open(IMAGE)
        found = []
        for _ in range(2):
            found.append(session.ask("Where is the dog?").turns[1].token_ids)
            session.forget()
        return found

    first, second = texts()
    assert first != second
    assert texts() == [first, second]


def test_probabilities_and_scores_of_masks(tiny):
    answer = ask_classes(tiny, IMAGE, NAMES, Asking(presence_threshold=0.0))
    for mask, one, logits in zip(answer.found(), answer.classes, answer.masks, strict=True):
        assert mask.label == one.label
        assert mask.probability == one.probability
        inside = logits[logits > 0]
        assert mask.area == len(inside)
        if len(inside):
            assert mask.score == pytest.approx(float(inside.sigmoid().mean()) * one.probability, abs=1e-6)
    assert torch.equal(answer.masks, answer.segmentation.masks)
