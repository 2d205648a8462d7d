"""Passes of the language model over prompts and drafts of their answers, for model/generation/decoding.py."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import Cache

from model.prompt_states import firsts_of, states_before
from model.text.answer_plan import AnswerPlan


class DraftPasses:
    """Runs prompts followed by drafted answers; prompts are left-padded, answers right-padded."""

    def __init__(
        self,
        prompt_embeds: Tensor,
        prompt_mask: Tensor,
        plans: Sequence[AnswerPlan],
        cache: Cache,
        *,
        neg_id: int,
        prompt_positions: Tensor | None,
        embed: Callable[[Tensor], Tensor],
        run: Callable[[Tensor, Tensor | None, Tensor, Cache], Tensor],
        select_rows: Callable[[Cache, Tensor], None],
        can_crop: bool,
    ) -> None:
        self.embed, self.forward, self.select_rows = embed, run, select_rows
        self.prompt_cache = None if can_crop else cache  # without any answer token, for every row
        self.plans = plans
        # For each row, of each choice the place of the first token of its name.
        self.firsts = [dict(zip(plan.positions, firsts_of(plan.positions), strict=True)) for plan in plans]
        self.prompt = prompt_embeds
        self.cache = cache
        self.rows = list(range(len(plans)))  # rows in the cache
        self.num_run = 0  # answer tokens in the cache
        # Nothing is predicted from the token of the last choice, so it is never an input.
        length = max(plan.positions[-1] for plan in plans)
        self.ids = torch.zeros(len(plans), length + 1, dtype=torch.long)  # on the CPU, like the choices
        mask = torch.zeros(len(plans), length, dtype=prompt_mask.dtype)
        for row, plan in enumerate(plans):
            self.ids[row, : len(plan.token_ids)] = torch.tensor(plan.token_ids)
            self.write(row, [neg_id] * len(plan.positions))
            mask[row, : plan.positions[-1]] = 1
        self.num_before = prompt_mask.shape[1]  # columns before the answers
        self.mask = torch.cat([prompt_mask, mask.to(prompt_mask.device)], dim=1)
        if prompt_positions is None:
            self.positions = (self.mask.long().cumsum(dim=1) - 1).clamp(min=0)
        else:  # those of cached columns are never read
            cached = prompt_positions.new_zeros(
                *prompt_positions.shape[:-1], self.num_before - self.prompt.shape[1]
            )
            answers = prompt_positions[..., -1:] + self.mask[:, self.num_before :].long().cumsum(dim=1)
            self.positions = torch.cat([cached, prompt_positions, answers], dim=-1)
        # Without a mask, attention is causal, and kernels skip the keys after each query.
        self.is_padded = len(plans) > 1 or not bool(prompt_mask.all())

    def run(
        self, rows: list[int], start: int, choices: Sequence[tuple[int, int]], num_states: int = 1
    ) -> Tensor:
        """One forward pass over the answers of `rows`, a subset of the previous pass's rows, from token `start` on.

        Returns:
            (n, hidden) states that predict the n choices, each given as (row, position in the answer); with
            num_states > 1 (n, num_states, hidden), those of each name. In all passes but the first, which includes
            the prompt, positions must be greater than `start`.
        """
        end = max(position for _, position in choices)
        start = self._forget(rows, start)
        device = self.mask.device
        embeds = self.embed(self.ids[rows, start:end].to(device)).to(self.prompt.dtype)
        first_predicted = start + 1
        if not self.num_run:
            embeds = torch.cat([self.prompt, embeds], dim=1)
            first_predicted -= self.prompt.shape[1]
        columns = self.num_before + end
        mask, positions = self.mask[:, :columns], self.positions[..., columns - embeds.shape[1] : columns]
        if len(rows) < len(self.plans):
            chosen = torch.tensor(rows, device=device)
            mask, positions = mask[chosen], positions[..., chosen, :]
        states = self.forward(embeds, mask if self.is_padded else None, positions, self.cache)
        self.num_run = end
        place_of = {row: place for place, row in enumerate(rows)}
        firsts = (
            [self.firsts[row][position] - first_predicted + 1 for row, position in choices]
            if num_states > 1
            else None
        )
        return states_before(
            states,
            torch.tensor([place_of[row] for row, _ in choices], device=device),
            torch.tensor([position - first_predicted + 1 for _, position in choices], device=device),
            None if firsts is None else torch.tensor(firsts, device=device),
            num_states,
        )

    def write(self, row: int, token_ids: Sequence[int]) -> None:
        """Write a row's choices into its draft."""
        self.ids[row, list(self.plans[row].positions)] = torch.tensor(token_ids)

    def _forget(self, rows: list[int], start: int) -> int:
        """Removes the answer tokens from `start` on, and finished rows, from the cache; returns where to start."""
        if self.prompt_cache is not None:
            if not self.num_run:
                columns = self.num_before
                mask = self.mask[:, :columns] if self.is_padded else None
                positions = self.positions[..., columns - self.prompt.shape[1] : columns]
                self.forward(self.prompt, mask, positions, self.prompt_cache)
                self.num_run = 1  # the prompt is in the cache from now on
            self.cache = copy.deepcopy(self.prompt_cache)
            self.select_rows(self.cache, torch.tensor(rows, device=self.mask.device))
            return 0
        if start < self.num_run:
            self.cache.crop(start - self.num_run)
        if rows != self.rows:
            kept = [self.rows.index(row) for row in rows]
            self.select_rows(self.cache, torch.tensor(kept, device=self.mask.device))
            self.rows = rows
        return start
