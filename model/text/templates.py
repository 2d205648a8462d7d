"""Prompt templates: a conversation as segments of text and special tokens, and which of them are learned.

The image is part of the template, not of a turn's text: every template puts it before the first user text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from model.errors import UserError
from model.text.chat_template import TemplateError, rendered
from model.text.conversation import Conversation
from model.text.special_tokens import IM_END, IM_START, IMAGE, Special, Text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OWN_PROMPT = "chat_template"  # the prompt that is the tokenizer's own template
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
