"""The probability of a target with every family of bases: that of a plain pass over the answer "It is [SEG]."."""

from __future__ import annotations

import pytest
import torch

from model.generation.presence import answers_part
from model.text.conversation import Conversation
from tests.tiny_weights import noise_image

IMAGES = [noise_image(40, 60, seed=1), noise_image(50, 30, seed=2)]
QUERIES = [("Can you segment the dog in this image?",), ("Where is it?",), ("Please segment the tree.",)]
OWNERS = [1, 0, 1]


@torch.no_grad()
def test_it_equals_that_of_a_plain_pass(model):
    model = model.double().eval()
    processor = model.processor
    _, seg, other = answers_part(processor)
    found = model.target_probabilities(IMAGES, QUERIES, image_of_row=OWNERS)
    for query, owner, probability in zip(QUERIES, OWNERS, found, strict=True):
        inputs = processor.collate([IMAGES[owner]], [Conversation.of(query, processor.format.found())], [0])
        column = inputs.input_ids[0].tolist().index(seg)
        logits = model(**inputs.fields()).logits[0, column - 1]
        assert probability == pytest.approx(float(torch.sigmoid(logits[seg] - logits[other])), abs=1e-6)
