"""Models that answer freely: chat, predictions and the evaluation read the same words alike, by their token ids."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from model.checkpoints.load import load_model
from model.text.conversation import Conversation
from model.text.special_tokens import SEG, Special
from tests.tiny_weights import noise_image
from tests.told_answers import speaker
from utils.config.chat import ChatConfig
from utils.evaluation.predict import predict_batch
from utils.evaluation.prompting import EvaluationSettings, ask_freely
from utils.serving.answers import Asking, ask_classes, ask_in_words
from utils.serving.terminal import Teller

IMAGE = noise_image(40, 60)
MARK = Special(SEG)


@pytest.fixture(scope="module")
def untrained(tiny_folders):
    return load_model(tiny_folders.llava, dtype=torch.float32, format="lisa", **tiny_folders.parts)[0]


@pytest.fixture
def says(untrained, monkeypatch):
    """Makes the model say something, whatever it is asked."""
    return speaker(untrained, monkeypatch)


def ways_to_ask(model, names):
    """The names found by the API, by chat.py, by test_sem.py --images and by an evaluation, with their masks."""
    found = model.segment(IMAGE, names)
    yield list(found.present_names), found.masks
    answer = ask_classes(model, IMAGE, names, Asking())
    yield list(answer.names), answer.masks
    settings = EvaluationSettings()
    [found] = predict_batch(model, model.processor, [IMAGE], names, settings)
    assert set(np.unique(found.labels)) <= {-1, *found.present}
    yield [names[index] for index in sorted(found.present)], None
    [[(_, read)]] = ask_freely(model, model.processor, [IMAGE], [names], settings)
    order = sorted(range(len(read.found)), key=read.found.__getitem__)
    yield [names[read.found[place]] for place in order], read.masks[order]


def assert_all_find(model, names, expected, masks):
    for found, drawn in ways_to_ask(model, names):
        assert found == expected
        if drawn is not None:
            torch.testing.assert_close(drawn, masks)


def test_the_one_class_asked_is_found_in_an_answer_that_does_not_name_it(says):
    model = says("Sure, it is ", MARK, ".")
    expected = model.segment(IMAGE, ["dog"]).masks
    assert expected.shape == (1, 40, 60)
    assert_all_find(model, ["dog"], ["dog"], expected)
    assert_all_find(says("I see none."), ["dog"], [], expected[:0])
    assert_all_find(says("It is ", MARK, "."), ["dog", "cat"], [], expected[:0])


def test_a_mask_that_names_none_of_several_classes_is_said_to_be_of_none(says, tmp_path, capsys):
    model, names = says("Sure, it is ", MARK, "."), ["dog", "cat"]
    found = model.segment(IMAGE, names)
    assert found.unattributed == ("sure, it is",)
    [prediction] = predict_batch(model, model.processor, [IMAGE], names, EvaluationSettings())
    assert prediction.unattributed == ("sure, it is",)
    answer = ask_classes(model, IMAGE, names, Asking())
    assert answer.absent == ()  # nobody knows
    assert [one.present for one in answer.classes] == [None, None]
    assert answer.turns == ()
    teller = Teller(config=ChatConfig(version="any", vis_save_path=str(tmp_path)))
    teller.tell(answer, IMAGE, "image", file="image.png", threshold=None, streamed=False)
    said = capsys.readouterr().out
    assert "1 mask of the answer could not be attributed to a class ('sure, it is')" in said
    assert "None of them" not in said
    # One class at a time, each mask is of the class that was asked.
    answer = ask_classes(model, IMAGE, names, Asking(classes_per_query=1))
    assert (answer.names, answer.remark) == (("dog", "cat"), "")


def test_what_is_named_beside_a_mask_that_is_of_none_is_shown(says):
    model = says("The dog ", MARK, ", house ", MARK, ".")
    answer = ask_classes(model, IMAGE, ["dog", "cat"], Asking())
    assert (answer.names, answer.absent) == (("dog",), ())
    assert answer.text == "dog [SEG]."
    assert "'house'" in answer.remark


def test_an_answer_without_masks_says_that_nothing_is_there(says):
    answer = ask_classes(says("I see none."), IMAGE, ["dog", "cat"], Asking())
    assert (answer.text, answer.absent, answer.remark) == (
        "None of them is in this image.",
        ("dog", "cat"),
        "",
    )


def test_names_are_matched_alike_everywhere(says):
    names = ["pool table", "traffic light", "dog"]
    model = says("The dog ", MARK, ", a trafic light ", MARK, " and the dog ", MARK, ", house ", MARK, ".")
    said = model.generate_batch([IMAGE], [conversation_about(model, names)])[0]
    assert said.mentions == (
        ("The dog", True),
        ("a trafic light", True),
        ("and the dog", True),
        ("house", True),
    )
    dog = torch.maximum(said.masks[0], said.masks[2])
    assert_all_find(model, names, ["traffic light", "dog"], torch.stack([said.masks[1], dog]))
    exact = model.segment(IMAGE, names, match_distance=0)
    assert exact.present_names == ("dog",)


def test_a_token_spelled_in_letters_is_no_token(says):
    model = says("dog [SEG], cat ", MARK, ".")
    answer = model.chat(IMAGE, "dog?")
    assert answer.text == "dog [SEG], cat [SEG]."
    assert answer.mentions == (("dog [SEG], cat", True),)
    assert len(answer.masks) == 1
    shown = ask_in_words(model, IMAGE, "Where are dog and cat?", Asking())
    assert len(shown.names) == len(shown.masks) == 1
    assert_all_find(model, ["dog", "cat"], [], answer.masks[:0])
    spelled = says("dog [SEG], cat [SEG].")
    assert spelled.chat(IMAGE, "dog?").mentions == ()
    assert_all_find(spelled, ["dog", "cat"], [], answer.masks[:0])
    assert_all_find(spelled, ["dog"], [], answer.masks[:0])


def conversation_about(model, names):
    return Conversation.of(model.processor.format.query(names))
