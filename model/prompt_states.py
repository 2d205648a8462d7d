"""Which states of the language model prompt a mask: the one that decided on it or, for a concept, those of its name.

The answer "tree [SEG], dog [NEG]": the state at a token predicts the next one, so the last token of a name decides.

# place    0     1     2    3    4    5     6
# token   tr    ee   [SEG]  ,   dog [NEG]   .
# of [SEG]       tr ee        places 0 and 1, the last of them decided
# of [NEG]       , dog        places 3 and 4: from the choice before, or the beginning of the answer, on

States of a mask are a row of `most` places, the last of which decided; those in front of the name are zeros.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def states_before(
    states: Tensor, rows: Tensor, choices: Tensor, firsts: Tensor | None = None, most: int = 1
) -> Tensor:
    """The states of n choices: (n, hidden_dim) that decided on them or, with most > 1, (n, most, hidden_dim).

    Args:
        states: (N, T, hidden_dim) at every token.
        rows, choices: (n,) row and column of the token of each choice; its column is at least 1.
        firsts: (n,) column of the first token of what is said about each choice; at most `choices - 1`.
        most: number of states of each choice.
    """
    if most == 1:
        return states[rows, choices - 1]
    assert firsts is not None, "the states of a name begin somewhere"
    columns = choices[:, None] - torch.arange(most, 0, -1, device=choices.device)  # (n, most)
    is_token = columns >= firsts[:, None]
    found = states[rows[:, None], columns.clamp(min=0)]
    return found.masked_fill(~is_token.unsqueeze(-1), 0)


def firsts_of(choices: Sequence[int], begins: Sequence[int] | None = None) -> list[int]:
    """Place of the first token of what is said about each choice of an answer, which may be -1, before the answer.

    Args:
        choices: places of all choices of the answer, ascending.
        begins: those of which the result is wanted; all of them if not given.
    """
    before = dict(zip(choices, [-1, *choices], strict=False))
    return [min(choice - 1, before[choice] + 1) for choice in (choices if begins is None else begins)]


def firsts_in_rows(is_said: Tensor, is_choice: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """`firsts` (n,) of choices in rows that hold whole conversations.

    Args:
        is_said: (N, T) bool, the tokens of answers.
        is_choice: (N, T) bool, the tokens [SEG] and [NEG].
        rows, columns: (n,) of choices.
    """
    places = torch.arange(is_said.shape[1]).expand_as(is_said)
    # The last place up to each one that does not belong to what follows it.
    border = torch.where(is_said & ~is_choice, -1, places).cummax(dim=1).values
    return torch.minimum(border[rows, columns - 1] + 1, columns - 1)


def evenly(number: int, wanted: int) -> list[int]:
    """At most `wanted` of the numbers 0 to number - 1, evenly spread."""
    wanted = min(number, wanted)
    return [(2 * index + 1) * number // (2 * wanted) for index in range(wanted)]
