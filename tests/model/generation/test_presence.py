"""The probability of a target: the logits of a plain pass over the beginning that both fixed answers share."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from model.generation.presence import answers_part
from model.text.conversation import Conversation
from model.text.format import SequenceFormat
from model.text.phrases import phrases
from tests.tiny_weights import noise_image

IMAGES = [noise_image(40, 60, seed=1), noise_image(50, 30, seed=2)]
QUERIES = [("Can you segment the dog in this image?",), ("Where is it?",), ("Please segment the tall tree.",)]
OWNERS = [1, 0, 1]


@pytest.fixture
def model(tiny_model):
    return tiny_model.double()


@torch.no_grad()
def of_plain_passes(model, processor):
    """Each query by itself: [SEG] against the other answer's word, behind the words before [SEG]."""
    seg, results = processor.token_ids.seg, []
    for query, owner in zip(QUERIES, OWNERS, strict=True):
        inputs = processor.collate([IMAGES[owner]], [Conversation.of(query, processor.format.found())], [0])
        column = inputs.input_ids[0].tolist().index(seg)
        other = processor.encode(Conversation.of(query, processor.format.not_found())).input_ids[column]
        assert other != seg
        logits = model(**inputs.fields()).logits[0, column - 1]
        results.append(float(torch.sigmoid(logits[seg] - logits[other])))
    return results


def test_it_is_the_share_of_seg_where_the_two_fixed_answers_part(model):
    found = model.target_probabilities(IMAGES, QUERIES, image_of_row=OWNERS)
    assert found == pytest.approx(of_plain_passes(model, model.processor), abs=1e-9)
    assert len({round(value, 9) for value in found}) == 3


def test_it_is_the_same_for_encoded_images_one_by_one(model):
    together = model.target_probabilities(IMAGES, QUERIES, image_of_row=OWNERS)
    encoded = model.encode_batch(IMAGES)
    for query, owner, expected in zip(QUERIES, OWNERS, together, strict=True):
        (alone,) = model.target_probabilities([encoded[owner]], [query])
        assert alone == pytest.approx(expected, abs=1e-9)
    assert model.target_probabilities([], []) == []


def test_a_format_without_a_token_for_absence_is_compared_by_its_words(model):
    processor = replace(model.processor, format=SequenceFormat.named("lisa"))
    found = model.target_probabilities(IMAGES, QUERIES, image_of_row=OWNERS, processor=processor)
    assert found == pytest.approx(of_plain_passes(model, processor), abs=1e-9)


def test_the_answers_begin_alike_and_part_at_the_token(model):
    shared, seg, other = answers_part(model.processor)
    assert model.processor.decode(shared).strip() == "It is"
    assert seg == model.processor.token_ids.seg
    assert other not in (model.processor.token_ids.neg, seg)


def test_training_uses_both_beginnings_equally_often():
    shares = [
        sum(phrase.startswith("It is ") for phrase in phrases()[kind]) / len(phrases()[kind])
        for kind in ("target_answer", "no_target_answer")
    ]
    assert shares[0] == shares[1] > 0


def test_without_a_shared_beginning_the_first_word_decides(model, monkeypatch):
    _, seg, other = answers_part(model.processor)
    monkeypatch.setattr("model.generation.presence.answers_part", lambda processor: ([], seg, other))
    for query, owner in zip(QUERIES, OWNERS, strict=True):
        (found,) = model.target_probabilities([IMAGES[owner]], [query])
        with torch.no_grad():
            inputs = model.processor.collate([IMAGES[owner]], [Conversation.of(query)], [0])
            logits = model(**inputs.fields()).logits[0, -1]
        assert found == pytest.approx(float(torch.sigmoid(logits[seg] - logits[other])), abs=1e-9)


def test_answers_that_cannot_be_compared_have_no_probability(model, monkeypatch):
    monkeypatch.setattr("model.generation.presence.answers_part", lambda processor: None)
    assert model.target_probabilities(IMAGES, QUERIES, image_of_row=OWNERS) == [None] * 3
