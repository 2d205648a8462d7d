"""Batched generation, greedy by default, that also returns the hidden state that predicted each token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import Cache

from model.generation.streaming import OnToken
from model.prompt_states import firsts_of, states_before
from model.text.tokens import TokenIds

if TYPE_CHECKING:
    from model.lasagna import LasagnaForConditionalGeneration


def greedy(
    model: LasagnaForConditionalGeneration,
    prompt: Tensor,
    mask: Tensor,
    eos: int,
    max_new_tokens: int,
    *,
    positions: Tensor | None = None,
    cache: Cache | None = None,
    choose: Callable[[Sequence[int], Tensor], Tensor] | None = None,
    on_token: OnToken | None = None,
) -> tuple[list[list[int]], list[Tensor]]:
    """For each row its new tokens and the hidden states (num_new, hidden_dim) that predicted them.

    Args:
        prompt, mask, positions, cache: as in `model.generation.prompts.Prompts`; the cache is modified in place.
            Without positions, tokens are counted.
        choose: the tokens (n,) of the n rows that are still open, from their indices and logits (n, vocabulary);
            None: the most probable ones. See `TokenChooser`.
        on_token: see `OnToken`.
    """
    cache = model.backbone.new_cache() if cache is None else cache
    if positions is None:
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -prompt.shape[1] :]
    tokens: list[list[int]] = [[] for _ in range(len(prompt))]
    states: list[list[Tensor]] = [[] for _ in range(len(prompt))]
    step, open_rows = prompt, list(range(len(prompt)))
    for _ in range(max_new_tokens):
        state = model.language_states(step, mask, positions, cache)[:, -1]
        logits = model.text_logits(state)
        token = logits.argmax(-1) if choose is None else choose(open_rows, logits)
        going_on = []
        for place, (row, new, deciding) in enumerate(zip(open_rows, to_host(token), state, strict=True)):
            tokens[row].append(new)
            states[row].append(deciding)
            is_stopped = on_token is not None and on_token(row, new)
            if new != eos and not is_stopped:
                going_on.append(place)
        if not going_on:
            break
        positions = positions[..., -1:] + 1
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        if len(going_on) < len(open_rows):  # finished rows leave the batch
            open_rows = [open_rows[place] for place in going_on]
            kept = torch.tensor(going_on, device=mask.device)
            model.backbone.select_rows(cache, kept)
            token, mask, positions = token[kept], mask[kept], positions[..., kept, :]
        step = model.embed(token.unsqueeze(1))
    return tokens, [torch.stack(row) if row else prompt[0, :0] for row in states]


def states_of_answer(row: Sequence[int], states: Tensor, ids: TokenIds, most: int) -> Tensor:
    """The states that prompt the mask decoder about each [SEG] of a generated answer; see `states_before`.

    Args:
        row: token ids.
        states: (number of tokens, hidden_dim), the states that predicted them.
        most: number of states of each [SEG].
    """
    segs = [place for place, token in enumerate(row) if token == ids.seg]
    if most == 1:
        return states[segs]
    choices = [place for place, token in enumerate(row) if token in (ids.seg, ids.neg)]
    # The state that predicted a token is the one at the token before it: column p holds the state at token p - 1.
    columns = torch.tensor(segs, dtype=torch.long, device=states.device) + 1
    firsts = torch.tensor(firsts_of(choices, segs), dtype=torch.long, device=states.device) + 1
    return states_before(states.unsqueeze(0), torch.zeros_like(columns), columns, firsts, most)


def to_host(tokens: Tensor) -> list[int]:
    """Token ids on the host: the only synchronization with the device during generation."""
    return tokens.tolist()
