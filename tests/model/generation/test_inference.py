"""What is asked about one image shares its prefix; generated answers equal what their text gives when read."""

from __future__ import annotations

import pytest
import torch

from model.generation.greedy import greedy
from model.generation.prompts import read_prompts
from model.text.conversation import Conversation
from tests.tiny_weights import noise_image
from tests.watching import passes_of

IMAGES = [noise_image(40, 60, seed=1), noise_image(50, 30, seed=2)]
QUESTIONS = [
    Conversation.of("Where is the dog?"),
    Conversation.of("What is on the left side of the tall tree in the middle?"),
    Conversation.of("Why?"),
    Conversation.of("Where is the cat?", "On the left.", "And the tree?"),
]
OWNERS = [1, 0, 0, 1]
NAMES = ["dog", "tree", "cat", "sky", "pool table", "person", "road"]


@pytest.fixture
def model(tiny_model):
    """In float64, so that choices between near ties are the same whatever the order of sums."""
    return tiny_model.double()


@pytest.fixture
def work(model):
    """(rows, tokens) of each pass of the language model, as it goes."""
    with passes_of(model.base_vlm.model.language_model) as passes:
        yield passes


def encoded_lengths(model, conversations):
    return [len(model.processor.encode(each).input_ids) for each in conversations]


def prefix_length(model):
    """Tokens up to the end of the image."""
    ids = model.processor.encode(QUESTIONS[0]).input_ids
    return max(place for place, token in enumerate(ids) if token == model.processor.token_ids.image) + 1


@torch.no_grad()
def test_rows_behind_a_shared_prefix_have_the_states_of_whole_rows(model):
    shared = read_prompts(model, model.processor, IMAGES, QUESTIONS, OWNERS)
    positions = (shared.mask.cumsum(-1) - 1).clamp(min=0)[:, -shared.embeddings.shape[1] :]
    states = model.language_states(shared.embeddings, shared.mask, positions, shared.cache)
    for row, (question, owner) in enumerate(zip(QUESTIONS, OWNERS, strict=True)):
        alone = read_prompts(model, model.processor, [IMAGES[owner]], [question], [0])
        assert alone.cache.get_seq_length() == 0
        expected = model.language_states(alone.embeddings, alone.mask)[0]
        own = len(expected) - prefix_length(model)
        torch.testing.assert_close(states[row, -own:], expected[-own:], rtol=0, atol=1e-9)


def test_the_prefix_is_run_once_for_an_image(model, work):
    prefix, lengths = prefix_length(model), encoded_lengths(model, QUESTIONS)
    model.generate_batch(IMAGES, QUESTIONS, image_of_row=OWNERS, max_new_tokens=1)
    assert work == [(2, prefix), (4, max(lengths) - prefix)]
    work.clear()
    model.generate_batch(IMAGES, QUESTIONS[:2], max_new_tokens=1)  # nothing to share
    assert work == [(2, max(lengths[:2]))]


def test_queries_of_a_long_list_share_their_image(model, work):
    together = model.segment_batch(IMAGES, [NAMES, NAMES[:2]], classes_per_query=3)
    assert work[0] == (2, prefix_length(model))
    assert [rows for rows, _ in work[1:2]] == [4]
    queries = [
        (IMAGES[0], NAMES[:3]),
        (IMAGES[0], NAMES[3:6]),
        (IMAGES[0], NAMES[6:]),
        (IMAGES[1], NAMES[:2]),
    ]
    alone = [model.segment(image, names) for image, names in queries]
    expected = [torch.cat([answer.masks for answer in alone[:3]]), alone[3].masks]
    assert together[0].present == [present for answer in alone[:3] for present in answer.present]
    assert together[1].present == alone[3].present
    for answer, masks in zip(together, expected, strict=True):
        torch.testing.assert_close(answer.masks, masks, rtol=1e-4, atol=1e-4)
    probabilities = [p for answer in alone[:3] for p in answer.probabilities]
    assert together[0].probabilities == pytest.approx(probabilities, abs=1e-9)


@torch.no_grad()
def test_generated_answers_have_the_tokens_and_states_of_the_finished_text(model, work):
    """Rows of one image and of several, some of which end earlier than others."""
    eos = model.processor.token_ids.eos
    prompts = read_prompts(model, model.processor, IMAGES, QUESTIONS, OWNERS)
    free, _ = greedy(model, prompts.embeddings, prompts.mask, eos, 8, cache=prompts.cache)
    # The untrained model never ends by itself: what the first row says third is made the end token.
    end = free[0][2]
    prompts = read_prompts(model, model.processor, IMAGES, QUESTIONS, OWNERS)
    work.clear()
    tokens, states = greedy(model, prompts.embeddings, prompts.mask, end, 8, cache=prompts.cache)
    assert tokens == [row[: row.index(end) + 1] if end in row else row for row in free]
    assert len(tokens[0]) <= 3
    for step, (rows, _) in enumerate(work):
        assert rows == sum(len(row) > step for row in tokens)
    for row, (question, owner) in enumerate(zip(QUESTIONS, OWNERS, strict=True)):
        alone = read_prompts(model, model.processor, [IMAGES[owner]], [question], [0])
        said = model.embed(torch.tensor([tokens[row][:-1]], dtype=torch.long))
        whole = torch.cat([alone.embeddings, said], dim=1)
        expected = model.language_states(whole, alone.mask.new_ones(whole.shape[:2]))[0]
        expected = expected[alone.embeddings.shape[1] - 1 :]
        torch.testing.assert_close(states[row], expected, rtol=0, atol=1e-9)
        assert model.text_logits(expected).argmax(-1).tolist() == tokens[row]


def test_no_new_tokens_are_an_empty_answer(model):
    [answer] = model.generate_batch(IMAGES[:1], QUESTIONS[:1], max_new_tokens=0)
    assert (answer.text, answer.token_ids, tuple(answer.masks.shape)) == ("", [], (0, 40, 60))
