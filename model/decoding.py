"""Constrained decoding of complex queries: exact greedy answers in a few passes instead of one per token.

Given the query, the answer's text is fixed but for SEG or NEG after each class name. So a whole answer is
drafted, run in one pass on top of the cached prompt, and every choice is read at once; the choices read are
the next draft. Up to and including the first choice that differs from its draft, everything was computed from
final tokens and is final; so the fixed point is the answer that greedy decoding gives, token by token, when
end tokens and names are forced and a choice is the larger of two logits. At least one choice becomes final in
each pass, hence at most as many passes as classes; a trained model needs two to four.

How the model calls it, with the prompt's embeddings (image features in place) padded left:

    plans = [plan_answer(tokenizer, classes, format, prompt=...) for classes in queries]
    answers = decode_choices(vlm.model.language_model, vlm.lm_head, prompt_embeds, prompt_mask, plans,
                             seg_id=ids.seg, neg_id=ids.neg)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedTokenizerBase

from model.conversation import Conversation, encode_conversation
from model.sequence import SequenceFormat


@dataclass(frozen=True, kw_only=True)
class AnswerPlan:
    """The answer to one complex query, open only at the choices."""

    names: tuple[str, ...]  # the classes asked for, in order
    token_ids: tuple[int, ...]  # the answer up to its last choice; every choice holds the SEG id
    positions: tuple[int, ...]  # of the choices in token_ids, one for each name, ascending

    def __post_init__(self) -> None:
        assert len(self.names) == len(self.positions)


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


def plan_answer(
    tokenizer: PreTrainedTokenizerBase, classes: Sequence[str], format: SequenceFormat, *, prompt: str
) -> AnswerPlan:
    """The plan of the answer to `format.query(classes)`.

    The answer is tokenized once, behind its prompt, because ids of single names do not join to the ids of
    the whole. Raises ValueError when the format leaves more open than SEG or NEG.
    """
    if not format.answers_every_class:
        raise ValueError(
            "constrained decoding needs a model trained with sequence_augmentation and order_following and a "
            f"token for absent classes; this one has {format}. Decode it freely instead"
        )
    query = format.query(classes)
    answer = format.answer([(name, True) for name in classes])
    asked = encode_conversation(tokenizer, Conversation.of(query), prompt=prompt, num_image_tokens=0)
    whole = encode_conversation(tokenizer, Conversation.of(query, answer), prompt=prompt, num_image_tokens=0)
    length = len(asked.input_ids)
    if whole.input_ids[:length] != asked.input_ids:
        raise ValueError(
            f"prompt {prompt!r} writes the query differently once it is answered; use 'llava_v1'"
        )
    ids = whole.input_ids[length:]
    seg_id = tokenizer.convert_tokens_to_ids(format.seg)
    positions = tuple(position for position, index in enumerate(ids) if index == seg_id)
    return AnswerPlan(names=tuple(classes), token_ids=tuple(ids[: positions[-1] + 1]), positions=positions)


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
    presence_threshold: float | None = None,
    rethreshold: float | None = None,
) -> list[ComplexAnswer]:
    """Greedy constrained answers to a batch of complex queries.

    Args:
        language_model: a Hugging Face decoder without its head, as `LlavaModel.language_model`. It is called
            with `inputs_embeds`, `attention_mask`, `position_ids`, `past_key_values` and `use_cache`, and
            returns `last_hidden_state` (with the final norm).
        head: states (n, hidden) -> logits (n, vocabulary); only the two columns of the choice are read.
        prompt_embeds: (rows, prompt, hidden), padded left.
        prompt_mask: (rows, prompt), 1 where a token stands.
        plans: one for each row.
        presence_threshold: probability from which a class counts as present, in [0, 1]; None is 0.5, the
            larger logit. It acts while decoding, so later choices see what it decided.
        rethreshold: judges the finished probabilities once more: a class is present from this one on, whatever
            the later choices have seen. None: as decoded.
    """
    if not len(plans) == len(prompt_embeds) == len(prompt_mask):
        raise ValueError(f"{len(plans)} plans for {len(prompt_embeds)} prompts")
    margin_needed = _logit(0.5 if presence_threshold is None else presence_threshold)
    if rethreshold is not None and not 0 <= rethreshold <= 1:
        raise ValueError(f"rethreshold must be in [0, 1], got {rethreshold}")
    reader = _AnswerReader(language_model, prompt_embeds, prompt_mask, plans, neg_id)
    rows = [_Row(plan) for plan in plans]
    num_passes, start = 0, 0
    while any(not row.finished for row in rows):
        reader.run(start)
        num_passes += 1
        # All open choices of the batch are read with one product.
        where = [(r, k) for r, row in enumerate(rows) for k in range(row.num_settled, len(row.present))]
        states = reader.states_before([(r, plans[r].positions[k]) for r, k in where])
        logits = head(states)[:, [seg_id, neg_id]]
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        margins = (logits[:, 0] - logits[:, 1]).tolist()
        for r, row in enumerate(rows):
            row.take(
                margins=[margin for margin, (owner, _) in zip(margins, where, strict=True) if owner == r],
                states=[state for state, (owner, _) in zip(states, where, strict=True) if owner == r],
                margin_needed=margin_needed,
            )
            reader.write(r, row.present, seg_id=seg_id, neg_id=neg_id)
        open_rows = [row for row in rows if not row.finished]
        start = min((row.plan.positions[row.num_settled - 1] for row in open_rows), default=0)
    return [row.answer(num_passes, rethreshold) for row in rows]


def _logit(probability: float) -> float:
    if not 0 <= probability <= 1:
        raise ValueError(f"presence_threshold must be in [0, 1], got {probability}")
    if probability in (0, 1):
        return math.inf if probability else -math.inf
    return math.log(probability) - math.log1p(-probability)


class _Row:
    """The choices of one query. The first `num_settled` are final, the others a draft."""

    def __init__(self, plan: AnswerPlan) -> None:
        self.plan = plan
        self.present = [False] * len(plan.names)
        self.margins = [0.0] * len(plan.names)
        self.states: list[Tensor | None] = [None] * len(plan.names)
        self.num_settled = 0

    @property
    def finished(self) -> bool:
        return self.num_settled == len(self.present)

    def take(self, *, margins: list[float], states: list[Tensor], margin_needed: float) -> None:
        """Take over what a pass says about the choices that are not settled.

        Settled ones are not compared again: in half precision a pass of another length may differ in the
        last bit, and a near-tie must not flip for ever.
        """
        first = self.num_settled
        drafted = self.present[first:]
        self.present[first:] = [margin >= margin_needed for margin in margins]
        self.margins[first:], self.states[first:] = margins, states
        changed = [k for k, old in enumerate(drafted, first) if self.present[k] != old]
        self.num_settled = changed[0] + 1 if changed else len(self.present)

    def answer(self, num_passes: int, rethreshold: float | None) -> ComplexAnswer:
        probabilities = torch.tensor(self.margins, dtype=torch.float64).sigmoid().tolist()
        present = list(self.present)
        if rethreshold is not None:
            present = [probability >= rethreshold for probability in probabilities]
        chosen = [state for state, is_present in zip(self.states, present, strict=True) if is_present]
        empty = self.states[0].new_zeros(0, len(self.states[0]))
        return ComplexAnswer(
            names=self.plan.names,
            present=present,
            probabilities=probabilities,
            seg_states=torch.stack(chosen) if chosen else empty,
            num_passes=num_passes,
        )


class _AnswerReader:
    """Runs drafted answers on top of the cached prompts: prompts are padded left, answers right."""

    def __init__(
        self,
        language_model: nn.Module,
        prompt_embeds: Tensor,
        prompt_mask: Tensor,
        plans: Sequence[AnswerPlan],
        neg_id: int,
    ) -> None:
        self.model = language_model
        self.plans = plans
        device = prompt_embeds.device
        # The token of the last choice decides nothing any more, so it is never run.
        self.length = max(plan.positions[-1] for plan in plans)
        ids = torch.zeros(len(plans), self.length + 1, dtype=torch.long)
        mask = torch.zeros(len(plans), self.length, dtype=prompt_mask.dtype)
        for row, plan in enumerate(plans):
            ids[row, : len(plan.token_ids)] = torch.tensor(plan.token_ids)
            ids[row, list(plan.positions)] = neg_id
            mask[row, : plan.positions[-1]] = 1
        self.ids = ids  # on the CPU, where the choices are
        self.mask = torch.cat([prompt_mask, mask.to(device)], dim=1)  # (rows, prompt + answer)
        self.num_prompt = prompt_mask.sum(dim=1, keepdim=True)  # (rows, 1) tokens without padding
        self.cache = DynamicCache()
        self.num_cached = 0  # tokens of the answers in the cache
        output = language_model(
            inputs_embeds=prompt_embeds,
            attention_mask=prompt_mask,
            position_ids=(prompt_mask.long().cumsum(dim=1) - 1).clamp(min=0),
            past_key_values=self.cache,
            use_cache=True,
        )
        # states[:, p] predicts the answer's token p; the first is the last state of the prompt.
        last = output.last_hidden_state[:, -1:]
        self.states = torch.cat([last, last.new_zeros(len(plans), self.length, last.shape[-1])], dim=1)

    def run(self, start: int) -> None:
        """Compute the states behind the tokens from `start` on; what is before `start` is kept."""
        if start == self.length:
            return  # only with answers that begin with their only choice: the prompt has decided it
        self.cache.crop(start - self.num_cached)
        device = self.states.device
        embeds = self.model.get_input_embeddings()(self.ids[:, start : self.length].to(device))
        output = self.model(
            inputs_embeds=embeds.to(self.states.dtype),
            attention_mask=self.mask,
            position_ids=self.num_prompt + torch.arange(start, self.length, device=device),
            past_key_values=self.cache,
            use_cache=True,
        )
        self.states[:, start + 1 :] = output.last_hidden_state
        self.num_cached = self.length

    def states_before(self, where: Sequence[tuple[int, int]]) -> Tensor:
        """(n, hidden) states that predict the tokens at (row, position in the answer)."""
        rows, positions = zip(*where, strict=True)
        return self.states[list(rows), list(positions)]

    def write(self, row: int, present: Sequence[bool], *, seg_id: int, neg_id: int) -> None:
        """Put a row's choices into its draft."""
        choices = torch.tensor([seg_id if p else neg_id for p in present])
        self.ids[row, list(self.plans[row].positions)] = choices
