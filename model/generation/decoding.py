"""Constrained decoding of complex queries: exact greedy answers in a few passes instead of one per token.

Given the query, the answer's text is fixed but for SEG or NEG after each class name. So a whole answer is
drafted, run in one pass, and every choice is read at once; the choices read are the next draft. Up to and
including the first choice that differs from its draft, everything was computed from final tokens and is final;
so the fixed point is the answer that greedy decoding gives, token by token, when end tokens and names are forced
and a choice is the larger of two logits. At least one choice of every open row becomes final in each pass, hence
at most as many passes as classes; a trained model needs two to four.

The first pass runs the prompt too, the others only what comes after the first choice that is not final. On a
CPU, where time is the number of tokens that are run, a long answer is run in pieces: a wrong draft then costs the
rest of its piece once more, not the rest of the answer. On a GPU a pass over few tokens takes nearly as long as one
over many, and whole answers need the fewest passes.

A worked example, the query "dog, cat, sky". Every choice is drafted [NEG]; the state at a column decides on the next:

# column         0    1    2   3    4    5   6    7
# first draft   dog [NEG]  ,  cat [NEG]  ,  sky [NEG]
# read              [SEG]         [SEG]         [NEG]    column 1 differs: it is final, the rest is the next draft
# second draft  dog [SEG]  ,  cat [SEG]  ,  sky [NEG]
# read                            [NEG]         [SEG]    column 4 differs: final
# third draft   dog [SEG]  ,  cat [NEG]  ,  sky [SEG]
# read                                          [SEG]    as drafted: the answer is final

What was read at column 4 in the first pass came after a wrong token, so it was no more than a guess.

How the model calls it, with the prompt's embeddings (image features in place) padded left:

    plans = [plan_answer(tokenizer, classes, format, prompt=...) for classes in queries]
    answers = decode_choices(vlm.model.language_model, vlm.lm_head, prompt_embeds, prompt_mask, plans,
                             seg_id=ids.seg, neg_id=ids.neg)
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from model.errors import UserError
from model.text.answer_plan import AnswerPlan

# Some 30 names. Anything from 64 to 256 took the same time within a fifth, tiny and medium models on one core.
CPU_PIECE_TOKENS = 128


@dataclass(frozen=True, kw_only=True)
class ComplexAnswer:
    """What the model said about each class of a query."""

    names: tuple[str, ...]
    present: list[bool]  # SEG rather than NEG
    probabilities: list[float]  # of SEG among SEG and NEG, given the choices before it
    seg_states: Tensor  # (number of present classes, hidden size): the state that decided on each SEG
    num_passes: int  # over the answer, for the whole batch

    @property
    def present_names(self) -> tuple[str, ...]:
        """The classes that got a mask, in the order of `seg_states`."""
        return tuple(name for name, present in zip(self.names, self.present, strict=True) if present)


@torch.no_grad()
def decode_choices(
    language_model: nn.Module,
    head: Callable[[Tensor], Tensor],
    prompt_embeds: Tensor,
    prompt_mask: Tensor,
    plans: Sequence[AnswerPlan],
    *,
    seg_id: int,
    neg_id: int,
    cache: DynamicCache | None = None,
    presence_threshold: float | None = None,
    rethreshold: float | None = None,
    piece_tokens: int | None = None,
) -> list[ComplexAnswer]:
    """Greedy constrained answers to a batch of complex queries.

    Args:
        language_model: a Hugging Face decoder without its head, as `LlavaModel.language_model`. It is called
            with `inputs_embeds`, `attention_mask`, `position_ids`, `past_key_values` and `use_cache`, and
            returns `last_hidden_state` (with the final norm).
        head: states (n, hidden) -> logits (n, vocabulary), of which the two columns of the choice are read. It is
            called as a whole, because its weight may be divided among processes until it is.
        prompt_embeds: (rows, prompt, hidden), padded left.
        prompt_mask: (rows, cached + prompt), 1 where a token stands.
        plans: one for each row.
        cache: keys and values of what stands before `prompt_embeds`, for every row; used up.
        presence_threshold: probability from which a class counts as present, in [0, 1]; None is 0.5, the
            larger logit. It acts while decoding, so later choices see what it decided.
        rethreshold: judges the finished probabilities once more: a class is present from this one on, whatever
            the later choices have seen. None: as decoded.
        piece_tokens: passes run over pieces of about so many tokens of the answers, one piece after the other.
            None: `CPU_PIECE_TOKENS` on a CPU, elsewhere the whole answer.
    """
    if not len(plans) == len(prompt_embeds) == len(prompt_mask):
        raise ValueError(f"{len(plans)} plans for {len(prompt_embeds)} prompts")
    if not plans:
        return []
    margin_needed = _logit(0.5 if presence_threshold is None else presence_threshold)
    if rethreshold is not None and not 0 <= rethreshold <= 1:
        raise UserError(f"rethreshold must be in [0, 1], got {rethreshold}")
    if piece_tokens is None:
        piece_tokens = CPU_PIECE_TOKENS if prompt_embeds.device.type == "cpu" else sys.maxsize
    cache = DynamicCache() if cache is None else cache
    reader = _AnswerReader(language_model, prompt_embeds, prompt_mask, plans, cache, neg_id=neg_id)
    rows = [_Row(plan, piece_tokens) for plan in plans]
    num_passes = 0
    while open_rows := [index for index, row in enumerate(rows) if not row.finished]:
        choices = [(index, position) for index in open_rows for position in rows[index].open_positions]
        states = reader.run(open_rows, min(rows[index].start for index in open_rows), choices)
        num_passes += 1
        # All open choices of the batch are read with one product, and the host waits once.
        logits = head(states)[:, [seg_id, neg_id]]
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        margins = (logits[:, 0] - logits[:, 1]).tolist()
        first = 0
        for index in open_rows:
            last = first + len(rows[index].open_positions)
            rows[index].take(margins[first:last], states[first:last], margin_needed)
            reader.write(index, [seg_id if present else neg_id for present in rows[index].present])
            first = last
    return [row.answer(num_passes, rethreshold) for row in rows]


def _logit(probability: float) -> float:
    if not 0 <= probability <= 1:
        raise UserError(f"presence_threshold must be in [0, 1], got {probability}")
    if probability in (0, 1):
        return math.inf if probability else -math.inf
    return math.log(probability) - math.log1p(-probability)


class _Row:
    """The choices of one query. The first `num_settled` are final, the others a draft."""

    def __init__(self, plan: AnswerPlan, piece_tokens: int) -> None:
        self.plan = plan
        self.piece_ends = _piece_ends(plan.positions, piece_tokens)  # numbers of choices
        self.present = [False] * len(plan.names)
        self.margins = [0.0] * len(plan.names)
        self.states: list[Tensor] = []  # that decided, (n, hidden) each, of settled choices in order
        self.num_settled = 0

    @property
    def finished(self) -> bool:
        return self.num_settled == len(self.present)

    @property
    def start(self) -> int:
        """Position of the first token that has to be run: the last settled choice, new since the last pass."""
        return self.plan.positions[self.num_settled - 1] if self.num_settled else 0

    @property
    def open_positions(self) -> tuple[int, ...]:
        """Positions of the choices of the current piece that are not settled."""
        return self.plan.positions[self.num_settled : self._end]

    @property
    def _end(self) -> int:
        """Number of choices to the end of the current piece."""
        return next(end for end in self.piece_ends if end > self.num_settled)

    def take(self, margins: list[float], states: Tensor, margin_needed: float) -> None:
        """Take over what a pass says about the n choices that were open; states are (n, hidden).

        Settled ones are not compared again: in half precision a pass of another length may differ in the
        last bit, and a near-tie must not flip for ever.
        """
        first, end = self.num_settled, self._end
        drafted = self.present[first:end]
        self.margins[first:end] = margins
        self.present[first:end] = [margin >= margin_needed for margin in margins]
        changed = [k for k, old in enumerate(drafted, first) if self.present[k] != old]
        self.num_settled = changed[0] + 1 if changed else end
        self.states.append(states[: self.num_settled - first])

    def answer(self, num_passes: int, rethreshold: float | None) -> ComplexAnswer:
        probabilities = torch.tensor(self.margins, dtype=torch.float64).sigmoid().tolist()
        present = list(self.present)
        if rethreshold is not None:
            present = [probability >= rethreshold for probability in probabilities]
        states = torch.cat(self.states)
        chosen = [index for index, is_present in enumerate(present) if is_present]
        return ComplexAnswer(
            names=self.plan.names,
            present=present,
            probabilities=probabilities,
            seg_states=states[torch.tensor(chosen, dtype=torch.long, device=states.device)],
            num_passes=num_passes,
        )


def _piece_ends(positions: Sequence[int], piece_tokens: int) -> list[int]:
    """How many choices there are to the end of each piece; `positions` are theirs in the answer."""
    pieces = [position // piece_tokens for position in positions]
    inner = [k for k in range(1, len(positions)) if pieces[k] != pieces[k - 1]]
    return [*inner, len(positions)]


class _AnswerReader:
    """Runs prompts with drafted answers behind them: prompts are padded left, answers right."""

    def __init__(
        self,
        language_model: nn.Module,
        prompt_embeds: Tensor,
        prompt_mask: Tensor,
        plans: Sequence[AnswerPlan],
        cache: DynamicCache,
        *,
        neg_id: int,
    ) -> None:
        self.model = language_model
        self.plans = plans
        self.prompt = prompt_embeds
        self.cache = cache
        self.rows = list(range(len(plans)))  # that the cache holds
        self.num_run = 0  # tokens of the answers in the cache
        # The token of the last choice decides nothing any more, so it is never run.
        length = max(plan.positions[-1] for plan in plans)
        self.ids = torch.zeros(len(plans), length + 1, dtype=torch.long)  # on the CPU, where the choices are
        mask = torch.zeros(len(plans), length, dtype=prompt_mask.dtype)
        for row, plan in enumerate(plans):
            self.ids[row, : len(plan.token_ids)] = torch.tensor(plan.token_ids)
            self.write(row, [neg_id] * len(plan.positions))
            mask[row, : plan.positions[-1]] = 1
        self.num_before = prompt_mask.shape[1]  # columns before the answers
        self.mask = torch.cat([prompt_mask, mask.to(prompt_mask.device)], dim=1)
        self.positions = (self.mask.long().cumsum(dim=1) - 1).clamp(min=0)
        # Without a mask, attention is causal, and kernels leave out what lies behind each query.
        self.is_padded = len(plans) > 1 or not bool(prompt_mask.all())

    def run(self, rows: list[int], start: int, choices: Sequence[tuple[int, int]]) -> Tensor:
        """Run the answers of `rows`, some of the rows of the pass before, from the token `start` on.

        Returns:
            (n, hidden) states that predict the n choices, each (row, position in the answer). After the first
            pass, which starts with the prompt, positions are behind `start`.
        """
        end = max(position for _, position in choices)
        self._forget(rows, start)
        device = self.mask.device
        embeds = self.model.get_input_embeddings()(self.ids[rows, start:end].to(device)).to(self.prompt.dtype)
        first_predicted = start + 1
        if not self.num_run:
            embeds = torch.cat([self.prompt, embeds], dim=1)
            first_predicted -= self.prompt.shape[1]
        columns = self.num_before + end
        mask, positions = self.mask[:, :columns], self.positions[:, columns - embeds.shape[1] : columns]
        if len(rows) < len(self.plans):
            chosen = torch.tensor(rows, device=device)
            mask, positions = mask[chosen], positions[chosen]
        states = self.model(
            inputs_embeds=embeds,
            attention_mask=mask if self.is_padded else None,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
        ).last_hidden_state
        self.num_run = end
        place_of = {row: place for place, row in enumerate(rows)}
        return states[
            [place_of[row] for row, _ in choices], [position - first_predicted for _, position in choices]
        ]

    def write(self, row: int, token_ids: Sequence[int]) -> None:
        """Put a row's choices into its draft."""
        self.ids[row, list(self.plans[row].positions)] = torch.tensor(token_ids)

    def _forget(self, rows: list[int], start: int) -> None:
        """Take out of the cache the tokens of answers from `start` on, and rows that are finished."""
        if start < self.num_run:
            self.cache.crop(start - self.num_run)
        if rows != self.rows:
            kept = [self.rows.index(row) for row in rows]
            self.cache.batch_select_indices(torch.tensor(kept, device=self.mask.device))
            self.rows = rows
