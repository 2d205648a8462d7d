"""Which states prompt a concept: from the choice before it, or the beginning of the answer, up to itself."""

from __future__ import annotations

import pytest
import torch

from model.generation.greedy import states_of_answer
from model.prompt_states import evenly, firsts_in_rows, firsts_of, states_before
from model.text.tokens import TokenIds

# place   0  1   2     3   4   5     6     7   8    9   10
# token   ?  tr  ee  [SEG] ,  dog  [NEG] [SEG] .   ?  [SEG]
SAID = torch.tensor([[0, 1, 1, 1, 1, 1, 1, 1, 1, 0, 1]]).bool()
SEG, NEG = (3, 7, 10), (6,)
CHOICE = torch.zeros_like(SAID)
CHOICE[0, [*SEG, *NEG]] = True
CHOICES, FIRSTS = (
    [3, 6, 7, 10],
    [1, 4, 6, 9],
)  # behind another choice, or the question: the one state that decided


def test_names_begin_behind_the_choice_before_or_with_the_answer():
    rows = torch.zeros(4, dtype=torch.long)
    assert firsts_in_rows(SAID, CHOICE, rows, torch.tensor(CHOICES)).tolist() == FIRSTS
    # In an answer alone, places count from its first token.
    assert firsts_of([2, 5, 6]) == [0, 3, 5]
    assert firsts_of([2, 5, 6], [5]) == [3]
    assert firsts_of([0, 3]) == [-1, 1]
    assert firsts_of([]) == []


@pytest.mark.parametrize("most", [2, 3, 8])
def test_states_end_with_the_one_that_decided_and_begin_with_zeros(most):
    states = torch.arange(1.0, 12)[None, :, None]  # at place p the state p + 1
    rows = torch.zeros(4, dtype=torch.long)
    found = states_before(states, rows, torch.tensor(CHOICES), torch.tensor(FIRSTS), most)[..., 0]
    for row, choice, first in zip(found.tolist(), CHOICES, FIRSTS, strict=True):
        expected = [place + 1 for place in range(first, choice)][-most:]
        assert row == [0] * (most - len(expected)) + expected
    alone = states_before(states, rows, torch.tensor(CHOICES))
    assert torch.equal(found[:, -1], alone[:, 0])


def test_a_generated_answer_has_the_states_that_training_reads():
    ids = TokenIds(seg=1, neg=2, image=3, eos=4, pad=0, im_start=None, im_end=None, bos=None)
    answer = [10, 11, 1, 12, 13, 2, 1, 14, 1]  # as above, without the question
    at_tokens = torch.randn(1 + len(answer), 5)  # the last token of the prompt, then the answer
    predicting = at_tokens[:-1]
    found = states_of_answer(answer, predicting, ids, 4)
    is_choice = torch.tensor([[False, *(token in (1, 2) for token in answer)]])
    is_said = torch.tensor([[False, *[True] * len(answer)]])
    columns = torch.tensor([place + 1 for place, token in enumerate(answer) if token == 1])
    rows = torch.zeros_like(columns)
    firsts = firsts_in_rows(is_said, is_choice, rows, columns)
    assert torch.equal(found, states_before(at_tokens[None], rows, columns, firsts, 4))
    assert torch.equal(states_of_answer(answer, predicting, ids, 1), at_tokens[columns - 1])
    assert states_of_answer([10, 2], predicting[:2], ids, 4).shape == (0, 4, 5)


def test_some_of_many_are_evenly_spread():
    assert evenly(0, 3) == []
    assert evenly(2, 3) == [0, 1]
    assert evenly(10, 1) == [5]
    assert evenly(10, 3) == [1, 5, 8]
