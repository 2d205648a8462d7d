"""Constrained decoding of complex queries: exact greedy answers in a few forward passes instead of one per token.

Given the query, the answer is fixed except for SEG or NEG after each class name. As in speculative decoding, a draft
of the whole answer is verified in one pass: the logits give a prediction for every choice, and the predictions are
the next draft. Everything up to and including the first choice that differs from its draft was computed from final
tokens, so it is final. The fixed point is therefore the answer of token-by-token greedy decoding under the same
constraint (names and end tokens forced, a choice is the larger of two logits). Each pass finalizes at least one
choice of every unfinished row, so there are at most as many passes as classes; a trained model needs two to four.

The first pass includes the prefill of the prompt; later ones start at the last final choice, with everything before
it in the key-value cache. On a CPU, where time is proportional to the number of tokens, a long answer is decoded in
chunks: after a wrong draft only the rest of its chunk is recomputed, not the rest of the answer. On a GPU a pass over
few tokens takes nearly as long as one over many, so whole answers, which need the fewest passes, are faster.

A worked example, the query "dog, cat, sky". The first draft is [NEG] everywhere; the hidden state at a column
predicts the next token:

# column         0    1    2   3    4    5   6    7
# first draft   dog [NEG]  ,  cat [NEG]  ,  sky [NEG]
# predicted         [SEG]         [SEG]         [NEG]    column 1 differs: it is final, the rest is the next draft
# second draft  dog [SEG]  ,  cat [SEG]  ,  sky [NEG]
# predicted                       [NEG]         [SEG]    column 4 differs: final
# third draft   dog [SEG]  ,  cat [NEG]  ,  sky [SEG]
# predicted                                     [SEG]    as drafted: the answer is final

The prediction at column 4 in the first pass was conditioned on a wrong token, so it could not be final.

How the model calls it, with the prompt's embeddings (patch features included) left-padded:

    plans = [plan_answer(tokenizer, classes, format, prompt=...) for classes in queries]
    answers = decode_choices(vlm.model.language_model, vlm.lm_head, prompt_embeds, prompt_mask, plans,
                             seg_id=ids.seg, neg_id=ids.neg)
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache

from model.errors import UserError
from model.generation.draft_passes import DraftPasses
from model.text.answer_plan import AnswerPlan

# About 30 names. Any value from 64 to 256 took the same time within 20 %, for tiny and medium models on one core.
CPU_PIECE_TOKENS = 128


@dataclass(frozen=True, kw_only=True)
class ComplexAnswer:
    """The model's decision about each class of a query."""

    names: tuple[str, ...]
    present: list[bool]  # SEG rather than NEG
    probabilities: list[float]  # of SEG given that it is SEG or NEG, conditioned on the choices before it
    # (number of classes, hidden size): the hidden state that predicted each choice; with several states of each
    # choice (number of classes, states, hidden size), see model/prompt_states.py.
    states: Tensor
    num_passes: int  # forward passes for the whole batch

    @property
    def seg_states(self) -> Tensor:
        """(number of present classes, hidden size): the hidden state that predicted each SEG."""
        return of_present(self.states, self.present)

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
    prompt_positions: Tensor | None = None,
    embed: Callable[[Tensor], Tensor] | None = None,
    run: Callable[[Tensor, Tensor | None, Tensor, Cache], Tensor] | None = None,
    select_rows: Callable[[Cache, Tensor], None] = DynamicCache.batch_select_indices,
    can_crop: bool = True,
    cache: Cache | None = None,
    presence_threshold: float | None = None,
    rethreshold: float | None = None,
    piece_tokens: int | None = None,
    states_per_choice: int = 1,
) -> list[ComplexAnswer]:
    """Greedy constrained answers to a batch of complex queries.

    Args:
        language_model: a Hugging Face decoder without its head, as `LlavaModel.language_model`. It is called
            with `inputs_embeds`, `attention_mask`, `position_ids`, `past_key_values` and `use_cache`, and
            returns `last_hidden_state` (with the final norm).
        head: states (n, hidden) -> logits (n, vocabulary), of which only the SEG and NEG columns are used. It is
            called as a module, not sliced, because ZeRO-3 may shard its weight and gathers it only in the call.
        prompt_embeds: (rows, prompt, hidden), left-padded.
        prompt_mask: (rows, cached + prompt), 1 for a token, 0 for padding.
        plans: one for each row.
        prompt_positions: (rows, prompt) or (3, rows, prompt), of the columns of `prompt_embeds`; if not given, tokens
            are counted.
        embed: token ids (rows, n) -> (rows, n, hidden); if not given, the language model's embedding.
        run: embeddings, mask, positions and cache -> last hidden states; if not given, the language model's forward.
        select_rows: keeps some rows of the cache, in place.
        can_crop: whether the cache can forget its last tokens; if not, every pass runs the whole answer on a copy of
            the prompt's cache.
        cache: key-value cache of the tokens before `prompt_embeds`, for every row; modified in place.
        presence_threshold: minimum probability of a present class, in [0, 1]; None is 0.5, the larger logit. It is
            applied during decoding, so later choices are conditioned on its decisions.
        rethreshold: a second threshold, applied to the final probabilities: a class is present from this one on,
            whatever token the later choices were conditioned on. None: as decoded.
        piece_tokens: answers are decoded in chunks of about this number of tokens, one after the other. None:
            `CPU_PIECE_TOKENS` on a CPU, elsewhere the whole answer.
        states_per_choice: more than 1 keeps the states of each name, of which the last one predicted the choice.
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
    passes = DraftPasses(
        prompt_embeds,
        prompt_mask,
        plans,
        cache,
        neg_id=neg_id,
        prompt_positions=prompt_positions,
        embed=embed or language_model.get_input_embeddings(),
        run=run or partial(_forward, language_model),
        select_rows=select_rows,
        can_crop=can_crop,
    )
    rows = [_Row(plan, piece_tokens) for plan in plans]
    num_passes = 0
    while open_rows := [index for index, row in enumerate(rows) if not row.finished]:
        choices = [(index, position) for index in open_rows for position in rows[index].open_positions]
        states = passes.run(
            open_rows, min(rows[index].start for index in open_rows), choices, states_per_choice
        )
        num_passes += 1
        # One matrix product for all undecided choices of the batch, and one synchronization with the device.
        logits = head(states if states_per_choice == 1 else states[:, -1])[:, [seg_id, neg_id]]
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        margins = (logits[:, 0] - logits[:, 1]).tolist()
        first = 0
        for index in open_rows:
            last = first + len(rows[index].open_positions)
            rows[index].take(margins[first:last], states[first:last], margin_needed)
            passes.write(index, [seg_id if present else neg_id for present in rows[index].present])
            first = last
    return [row.answer(num_passes, rethreshold) for row in rows]


def _forward(
    language_model: nn.Module, embeddings: Tensor, mask: Tensor | None, positions: Tensor, cache: Cache
) -> Tensor:
    return language_model(
        inputs_embeds=embeddings,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state


def _logit(probability: float) -> float:
    if not 0 <= probability <= 1:
        raise UserError(f"presence_threshold must be in [0, 1], got {probability}")
    if probability in (0, 1):
        return math.inf if probability else -math.inf
    return math.log(probability) - math.log1p(-probability)


class _Row:
    """The choices of one query. The first `num_settled` are final, the others are a draft."""

    def __init__(self, plan: AnswerPlan, piece_tokens: int) -> None:
        self.plan = plan
        self.piece_ends = _piece_ends(plan.positions, piece_tokens)  # in numbers of choices
        self.present = [False] * len(plan.names)
        self.margins = [0.0] * len(plan.names)
        self.states: list[Tensor] = []  # (n, hidden) each: predicted the settled choices, in order
        self.num_settled = 0

    @property
    def finished(self) -> bool:
        return self.num_settled == len(self.present)

    @property
    def start(self) -> int:
        """Position of the first token to process: the last settled choice, which is new since the last pass."""
        return self.plan.positions[self.num_settled - 1] if self.num_settled else 0

    @property
    def open_positions(self) -> tuple[int, ...]:
        """Positions of the choices of the current chunk that are not settled."""
        return self.plan.positions[self.num_settled : self._end]

    @property
    def _end(self) -> int:
        """Number of choices up to the end of the current chunk."""
        return next(end for end in self.piece_ends if end > self.num_settled)

    def take(self, margins: list[float], states: Tensor, margin_needed: float) -> None:
        """Update the draft with a pass's predictions for the n open choices; `states` are (n, hidden).

        Settled choices are not verified again: in half precision a pass of another length may differ in the last bit,
        and a near-tie could flip forever.
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
        return ComplexAnswer(
            names=self.plan.names,
            present=present,
            probabilities=probabilities,
            states=torch.cat(self.states),
            num_passes=num_passes,
        )


def of_present(states: Tensor, present: Sequence[bool]) -> Tensor:
    """The rows of (number of classes, hidden size) that belong to present classes."""
    chosen = [index for index, is_present in enumerate(present) if is_present]
    return states[torch.tensor(chosen, dtype=torch.long, device=states.device)]


def _piece_ends(positions: Sequence[int], piece_tokens: int) -> list[int]:
    """Number of choices up to the end of each chunk; `positions` are those of the choices in the answer."""
    pieces = [position // piece_tokens for position in positions]
    inner = [k for k in range(1, len(positions)) if pieces[k] != pieces[k - 1]]
    return [*inner, len(positions)]
