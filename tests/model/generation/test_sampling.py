"""Sampling equals that of transformers, and a row's draws do not depend on the rows beside it."""

from __future__ import annotations

import pytest
import torch
from transformers import GenerationConfig, LogitsProcessorList
from transformers.generation import TemperatureLogitsWarper, TopPLogitsWarper

from model.errors import UserError
from model.generation.sampling import GREEDY, Sampling
from model.generation.token_chooser import TokenChooser
from model.text.conversation import Conversation
from tests.tiny_weights import noise_image

CPU = torch.device("cpu")
IMAGES = [noise_image(40, 60, seed=1), noise_image(50, 30, seed=2)]
QUESTIONS = [Conversation.of("Where is the dog?"), Conversation.of("What is on the left side of the tree?")]


def test_greedy_is_the_default_and_takes_the_most_probable_token():
    logits = torch.randn(3, 50)
    assert Sampling() == GREEDY
    assert torch.equal(TokenChooser([GREEDY] * 3, CPU)([0, 1, 2], logits), logits.argmax(-1))


def test_draws_have_the_distribution_of_transformers_warpers():
    logits = 3 * torch.randn(1, 30, generator=torch.Generator().manual_seed(0))
    settings = GenerationConfig(temperature=0.7, top_p=0.8)
    warped = LogitsProcessorList(
        [TemperatureLogitsWarper(settings.temperature), TopPLogitsWarper(settings.top_p)]
    )
    expected = warped(None, logits).softmax(-1)[0]
    chooser = TokenChooser([Sampling(temperature=0.7, top_p=0.8, seed=3)], CPU)
    draws = torch.cat([chooser([0], logits) for _ in range(4000)]).bincount(minlength=30) / 4000
    assert not draws[expected == 0].any()
    assert (draws - expected).abs().max() < 0.03


def test_a_seed_gives_one_answer_whatever_is_asked_beside_it(tiny_model):
    model = tiny_model.double()
    drawn = Sampling(temperature=1.5, seed=5)

    def answers(samplings, rows=(0, 1)):
        return model.generate_batch(
            [IMAGES[row] for row in rows],
            [QUESTIONS[row] for row in rows],
            max_new_tokens=8,
            samplings=samplings,
        )

    together = answers([drawn, GREEDY])
    assert together[0].token_ids == answers([drawn], rows=(0,))[0].token_ids
    assert together[1].token_ids == answers(None)[1].token_ids
    assert together[0].token_ids != answers(None)[0].token_ids
    assert together[0].token_ids != answers([Sampling(temperature=1.5, seed=6)], rows=(0,))[0].token_ids
    states = model.chat(IMAGES[0], QUESTIONS[0], max_new_tokens=8, sampling=drawn)
    assert states.token_ids == together[0].token_ids


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": -1}, "temperature must be 0, which is greedy, or in 0.01 to 100.0, got -1"),
        ({"temperature": 1e-9}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 0}, "top_p must be above 0 and at most 1, got 0"),
        ({"top_p": 1.1}, "top_p"),
        ({"seed": -1}, "seed"),
    ],
)
def test_values_that_mean_nothing_are_refused(values, message):
    with pytest.raises(UserError, match=message):
        Sampling(**values)
