"""Prompt templates: from a conversation to token ids and labels.

The image is part of the template, not of a turn's text: every template puts it before the first user text. Only the
assistant's text and the end token after it have labels (are *learned*); all other labels are IGNORE_INDEX.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Literal

import numpy as np
from transformers import PreTrainedTokenizerBase

from model.errors import UserError
from model.text.chat_template import TemplateError, rendered
from model.text.placeholder import Cells, Placeholder, token_positions
from model.text.special_tokens import (
    CHOICE_TOKENS,
    IM_END,
    IM_START,
    IMAGE,
    SEG_TOKENS,
    Special,
    Text,
    as_text,
    check_encodable,
)
from model.text.tokens import encode_segments

OWN_PROMPT = "chat_template"  # the prompt that is the tokenizer's own template
IGNORE_INDEX = -100  # label of a token without a loss, the default ignore_index of torch.nn.CrossEntropyLoss


@dataclass(frozen=True)
class Turn:
    """One message of the user or the assistant."""

    role: Literal["user", "assistant"]
    text: Text
    # Of a generated answer: its tokens, for `encode_as_generated`.
    token_ids: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", as_text(self.text))
        if self.role not in ("user", "assistant"):
            raise ValueError(f"role must be 'user' or 'assistant', got {self.role!r}")
        if self.role == "user" and any(isinstance(p, Special) and p in CHOICE_TOKENS for p in self.text):
            raise ValueError(f"a user turn cannot contain a segmentation token: {self.text}")

    def __str__(self) -> str:
        return "".join(self.text)


@dataclass(frozen=True)
class Conversation:
    """Alternating turns of user and assistant. A conversation that ends with the user is a prompt to be answered."""

    turns: tuple[Turn, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "turns", tuple(self.turns))
        roles = [turn.role for turn in self.turns]
        expected = ["user" if i % 2 == 0 else "assistant" for i in range(len(roles))]
        if not roles or roles != expected:
            raise ValueError(f"turns must alternate user, assistant, ... and start with user, got {roles}")

    @classmethod
    def of(cls, *texts: str | Text) -> Conversation:
        """A conversation from texts of user, assistant, user, ..."""
        return cls(
            tuple(Turn("user" if i % 2 == 0 else "assistant", as_text(text)) for i, text in enumerate(texts))
        )

    @property
    def num_seg(self) -> int:
        """Number of masks: one for each SEG token of the assistant's turns."""
        return sum(isinstance(piece, Special) and piece in SEG_TOKENS for t in self.turns for piece in t.text)

    @property
    def answers(self) -> tuple[str, ...]:
        """The text of each assistant turn."""
        return tuple(str(turn) for turn in self.turns if turn.role == "assistant")

    @property
    def prompt(self) -> Conversation:
        """The conversation without the final answer, if there is one."""
        return Conversation(self.turns[:-1]) if self.turns[-1].role == "assistant" else self


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """A tokenized conversation; the image token is repeated, once for each patch feature of the image."""

    input_ids: list[int]
    labels: list[int]  # same length; IGNORE_INDEX where there is no loss
    num_image_tokens: int
    image_at: int | None = (
        None  # where one image token waits for `with_image`; None: the image's tokens are there
    )
    cells: Cells | None = None  # of the image's tokens, where positions have three axes
    image_start: int = 0  # index of the first of them
    first: int = 0  # how many tokens of the conversation come before these

    def __post_init__(self) -> None:
        assert len(self.input_ids) == len(self.labels)

    def with_image(self, placeholder: Placeholder) -> Encoded:
        """The conversation with the tokens of its image, unless they are there."""
        if self.image_at is None:
            return self
        before, after = slice(0, self.image_at), slice(self.image_at + 1, None)
        return Encoded(
            input_ids=[*self.input_ids[before], *placeholder.ids, *self.input_ids[after]],
            labels=[*self.labels[before], *[IGNORE_INDEX] * len(placeholder.ids), *self.labels[after]],
            num_image_tokens=placeholder.num_image_tokens,
            cells=placeholder.cells,
            image_start=self.image_at,
        )

    @cached_property
    def positions(self) -> np.ndarray:
        """(axes, length) int64: where the language model places the tokens."""
        whole = token_positions(self.first + len(self.input_ids), self.image_start, self.cells)
        return whole[:, self.first :]

    def before(self, length: int) -> Encoded:
        """Its first `length` tokens, the image among them."""
        return replace(self, input_ids=self.input_ids[:length], labels=self.labels[:length])

    def after(self, length: int) -> Encoded:
        """The tokens after the first `length`, at the positions that they have in the whole."""
        return replace(
            self,
            input_ids=self.input_ids[length:],
            labels=self.labels[length:],
            num_image_tokens=0,
            first=self.first + length,
        )

    @property
    def num_text_tokens(self) -> int:
        """Length without the image's tokens: what `model_max_length` limits."""
        return len(self.input_ids) - self.num_image_tokens


Segment = tuple[Text, bool]  # pieces, learned?


@dataclass(frozen=True, kw_only=True)
class PromptTemplate:
    """A template as fixed strings: opening, image, user text, cue, answer with its end token, reopening, ...

    The first user text comes after `opening` and the image, later ones after `reopening`.
    """

    opening: str
    reopening: str
    reopens_with_bos: bool
    cue: str
    answer_start: str
    answer_end: str

    def segments(self, tokenizer: PreTrainedTokenizerBase, conversation: Conversation) -> Iterator[Segment]:
        """The conversation in this template, as segments in order."""
        for index, turn in enumerate(conversation.turns):
            if turn.role == "assistant":
                eos = Special(tokenizer.eos_token)
                yield (self.answer_start, *turn.text, self.answer_end, eos), True
                continue
            if index == 0:
                head: Text = (self.opening, Special(IM_START), Special(IMAGE), Special(IM_END), "\n")
            elif self.reopens_with_bos:
                head = (Special(tokenizer.bos_token), self.reopening)
            else:
                head = (self.reopening,)
            yield (*head, *turn.text, self.cue), False


@dataclass(frozen=True)
class OwnChatTemplate:
    """The tokenizer's own template (`tokenizer.chat_template`).

    Args:
        image_token: what the template writes for the image.
        image_before, image_after: text of the image's placeholder that is the same for every image, as it is
            tokenized together with the text around it.
    """

    image_token: str = IMAGE
    image_before: str = ""
    image_after: str = ""

    def segments(self, tokenizer: PreTrainedTokenizerBase, conversation: Conversation) -> Iterator[Segment]:
        """The conversation in the tokenizer's template; an answer is learned up to its end token."""
        special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
        opening, *literals = self._literals(tokenizer, conversation)
        if self.image_token not in opening:
            opening += f"{self.image_token}\n"
        opening = opening.replace(
            self.image_token, f"{self.image_before}{self.image_token}{self.image_after}"
        )
        yield special_pieces(opening, special), False
        for turn, literal in zip(conversation.turns, literals, strict=True):
            after = special_pieces(literal, special)
            if turn.role == "user":
                yield turn.text, False
                yield after, False
                continue
            end = 1 if after and after[0].isspace() else 0
            if end == len(after) or not isinstance(after[end], Special):
                # A template without an end token would never teach the model to stop.
                after, end = (Special(tokenizer.eos_token), *after), 0
            yield (*turn.text, *after[: end + 1]), True
            yield after[end + 1 :], False

    def end_token(self, tokenizer: PreTrainedTokenizerBase) -> str:
        """The special token that ends an answer; generation stops at it."""
        *_, (answer, _), _ = self.segments(tokenizer, Conversation.of("a", "b"))
        return str(answer[-1])

    def _literals(self, tokenizer: PreTrainedTokenizerBase, conversation: Conversation) -> tuple[str, ...]:
        """The text that the tokenizer's template writes before, between and after the turns."""
        if tokenizer.chat_template is None:
            raise UserError("prompt 'chat_template' needs a tokenizer that has one; use prompt 'llava_v1'")
        roles = tuple(turn.role for turn in conversation.turns)
        return _literals_between(tokenizer, str(tokenizer.chat_template), roles, self.image_token)


@lru_cache(maxsize=64)
def _literals_between(
    tokenizer: PreTrainedTokenizerBase, template: str, roles: tuple[str, ...], image_token: str
) -> tuple[str, ...]:
    """What `template`, the tokenizer's, writes around turns of these roles, whatever their texts."""
    marks = [f"\ufdd2{index}\ufdd3" for index in range(len(roles))]
    # Templates of image models take lists of parts, those of text-only models take strings.
    failures = []
    for content in (_image_and_text, _only_text, str):
        messages = [{"role": role, "content": content(mark)} for role, mark in zip(roles, marks, strict=True)]
        if content is _image_and_text:
            messages[1:] = [{**message, "content": message["content"][1:]} for message in messages[1:]]
        try:
            text = rendered(tokenizer, messages, add_generation_prompt=roles[-1] == "user")
        except TemplateError as error:  # reported below if all attempts fail
            failures.append(str(error))
            continue
        literals = re.split("\ufdd2\\d+\ufdd3", text)
        as_python_list = any("'type'" in literal for literal in literals)
        wrong_image = content is _image_and_text and literals[0].count(image_token) != 1
        if re.findall("\ufdd2\\d+\ufdd3", text) == marks and not as_python_list and not wrong_image:
            return tuple(literals)
        failures.append("it does not write every turn once, in order")
    raise UserError(f"the tokenizer's chat template cannot be used ({failures[-1]}); use prompt 'llava_v1'")


def _image_and_text(text: str) -> list[dict[str, str]]:
    return [{"type": "image"}, {"type": "text", "text": text}]


def _only_text(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text}]


def special_pieces(literal: str, special: list[str]) -> Text:
    """A template's output as pieces of text and special tokens."""
    pattern = "|".join(re.escape(token) for token in sorted(special, key=len, reverse=True))
    pieces = re.split(f"({pattern})", literal)
    return tuple(Special(piece) if i % 2 else piece for i, piece in enumerate(pieces) if piece)


PROMPTS: dict[str, PromptTemplate | OwnChatTemplate] = {
    "llava_v1": PromptTemplate(
        opening="A chat between a curious human and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the human's questions. USER: ",
        reopening="USER: ",
        reopens_with_bos=False,
        cue=" ASSISTANT:",
        answer_start=" ",
        answer_end="",
    ),
    "llava_llama_2": PromptTemplate(
        opening="[INST] <<SYS>>\nYou are a helpful language and vision assistant. You are able to understand "
        "the visual content that the user provides, and assist the user with a variety of tasks using "
        "natural language.\n<</SYS>>\n\n",
        reopening="[INST] ",
        reopens_with_bos=True,
        cue=" [/INST]",
        answer_start=" ",
        answer_end=" ",
    ),
    OWN_PROMPT: OwnChatTemplate(),
}


def render(tokenizer: PreTrainedTokenizerBase, conversation: Conversation, prompt: str) -> list[Segment]:
    """The conversation as segments of text, each with whether its tokens have labels; the image is one token.

    `prompt` is a name in PROMPTS.
    """
    if prompt not in PROMPTS:
        raise UserError(f"unknown prompt {prompt!r}; known: {', '.join(sorted(PROMPTS))}")
    return list(PROMPTS[prompt].segments(tokenizer, conversation))


def encode_conversation(
    tokenizer: PreTrainedTokenizerBase, conversation: Conversation, *, prompt: str, num_image_tokens: int
) -> Encoded:
    """Ids and labels of a conversation; a conversation ending with the user gives a generation prompt."""
    for turn in conversation.turns:
        check_encodable("".join(turn.text))
    segments = render(tokenizer, conversation, prompt)
    before, after = _split_at_image(segments)
    ids_before, _ = encode_segments(tokenizer, [pieces for pieces, _ in before])
    # The text after the image is tokenized separately, as in LLaVA: a tokenizer that prepends a space to its input
    # does so here too.
    ids_after, owners = encode_segments(tokenizer, [pieces for pieces, _ in after])
    if tokenizer.bos_token_id is not None and ids_before[:1] != [tokenizer.bos_token_id]:
        ids_before = [tokenizer.bos_token_id, *ids_before]
    image_id = tokenizer.convert_tokens_to_ids(IMAGE)
    labels_after = [
        index if after[owner][1] else IGNORE_INDEX for index, owner in zip(ids_after, owners, strict=True)
    ]
    prefix = [*ids_before, *[image_id] * num_image_tokens]
    return Encoded(
        input_ids=[*prefix, *ids_after],
        labels=[*[IGNORE_INDEX] * len(prefix), *labels_after],
        num_image_tokens=num_image_tokens,
    )


def encode_with_place(
    tokenizer: PreTrainedTokenizerBase, conversation: Conversation, template: OwnChatTemplate
) -> Encoded:
    """As `encode_conversation`, with one image token where the image's tokens go (`Encoded.with_image`).

    The whole text is tokenized at once, as the model's own processor does.
    """
    for turn in conversation.turns:
        check_encodable("".join(turn.text))
    segments = list(template.segments(tokenizer, conversation))
    ids, owners = encode_segments(tokenizer, [pieces for pieces, _ in segments])
    labels = [index if segments[owner][1] else IGNORE_INDEX for index, owner in zip(ids, owners, strict=True)]
    bos = tokenizer.bos_token_id
    if bos is not None and ids[:1] != [bos] and tokenizer("").input_ids[:1] == [bos]:
        ids, labels = [bos, *ids], [IGNORE_INDEX, *labels]
    place = ids.index(tokenizer.convert_tokens_to_ids(template.image_token))
    return Encoded(input_ids=ids, labels=labels, num_image_tokens=1, image_at=place)


def _split_at_image(segments: list[Segment]) -> tuple[list[Segment], list[Segment]]:
    for index, (pieces, learned) in enumerate(segments):
        for position, piece in enumerate(pieces):
            if isinstance(piece, Special) and piece == IMAGE:
                before = [*segments[:index], (pieces[:position], learned)]
                return before, [(pieces[position + 1 :], learned), *segments[index + 1 :]]
    raise AssertionError("every template writes the image token")
