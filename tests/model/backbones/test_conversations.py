"""Conversations with bases of every family: follow-ups over the tokens that were said, streams, other thresholds."""

from __future__ import annotations

import torch

from model.generation.sampling import Sampling
from model.generation.streaming import TextStream
from model.text.conversation import Conversation, Turn
from tests.tiny_weights import noise_image

IMAGE = noise_image(70, 100)
QUESTION = Conversation.of("Where is the dog?")
NAMES = ["dog", "cat", "tree"]


def test_a_follow_up_has_the_prompt_and_the_tokens_that_were_said(model):
    image, processor = model.encode(IMAGE), model.processor
    parts: list[str] = []
    stream = TextStream(processor)
    first = model.chat(
        image,
        QUESTION,
        max_new_tokens=6,
        sampling=Sampling(temperature=2.0, seed=1),
        on_token=lambda _, token: parts.append(stream.add(token)),
    )
    assert "".join(parts) + stream.rest(first.text) == first.text
    said = processor.said(first.token_ids)
    follow_up = Conversation((*QUESTION.turns, said, Turn("user", ("And the tree?",))))
    before = processor.encode(QUESTION).with_image(image.placeholder).input_ids
    whole = processor.encode(follow_up).with_image(image.placeholder).input_ids
    assert whole[: len(before)] == before
    assert whole[len(before) : len(before) + len(first.token_ids)] == first.token_ids
    assert len(model.chat(image, follow_up, max_new_tokens=3).token_ids) <= 3


def test_another_threshold_decides_as_a_pass_with_it_would(model):
    image = model.encode(IMAGE)
    answer = model.segment(image, NAMES)
    for threshold in (0.0, sorted(answer.probabilities)[1], 1.0):
        again = model.rethreshold(answer, image, threshold)
        expected = model.segment(image, NAMES, rethreshold=threshold)
        assert again.present == expected.present
        torch.testing.assert_close(again.masks, expected.masks)
