"""OpenAI's chat completions: their requests as conversations about an image, answers as their responses.

Source: platform.openai.com/docs/api-reference/chat. Beyond it a message of the assistant has `masks`, a list of
`MaskJson`, and a request may have `instances`, `min_area` and `polygons`.
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from model.errors import UserError
from model.generation.sampling import Sampling
from model.text.conversation import Conversation, Turn
from model.text.format import SequenceFormat
from model.text.special_tokens import Special, Text
from utils.serving.schema import MaskJson

# Settings that would change the answer and are not offered: what they may be all the same.
NOT_OFFERED: dict[str, tuple[object, ...]] = {
    "n": (None, 1), "stop": (None, [], ""), "tools": (None, []), "functions": (None, []), "logprobs": (None, False),
    "logit_bias": (None, {}), "presence_penalty": (None, 0), "frequency_penalty": (None, 0),
    "response_format": (None, {"type": "text"}), "audio": (None,), "modalities": (None, ["text"]),
}  # fmt: skip


class ImageUrl(BaseModel):
    """The address of an image, or the image itself."""

    url: str


class Part(BaseModel):
    """A part of a message."""

    type: Literal["text", "image_url"]
    text: str = ""
    image_url: ImageUrl | str | None = None


class Message(BaseModel):
    """A turn of the conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[Part] | None = None


class StreamOptions(BaseModel):
    """What a stream ends with."""

    include_usage: bool = False


class Wanted(BaseModel):
    """How masks are returned."""

    instances: bool = False
    min_area: int = Field(0, ge=0)
    polygons: bool = False


class ChatRequest(Wanted):
    """POST /v1/chat/completions."""

    model_config = ConfigDict(extra="allow")

    model: str
    messages: list[Message] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None

    @property
    def num_tokens(self) -> int | None:
        """The longest answer that is wanted, if the request says so."""
        return self.max_completion_tokens or self.max_tokens

    def sampling_over(self, default: Sampling) -> Sampling:
        """How tokens are chosen; what the request leaves open is as in `default`."""
        return Sampling(
            temperature=default.temperature if self.temperature is None else self.temperature,
            top_p=default.top_p if self.top_p is None else self.top_p,
            seed=default.seed if self.seed is None else self.seed,
        )

    def check(self) -> None:
        """UserError for settings that would be ignored."""
        for name, harmless in NOT_OFFERED.items():
            value = (self.model_extra or {}).get(name)
            if value not in harmless:
                raise UserError(f"{name} is not offered by this server; leave it out")


class SegmentRequest(Wanted):
    """POST /v1/segment."""

    image: str  # as an image_url
    classes: list[str] | str  # names, or names separated by commas
    threshold: float | None = Field(None, ge=0, le=1)
    model: str | None = None
    overlay: bool = False  # the response has the overlay, a PNG as a data URL


def read_messages(messages: Sequence[Message], format: SequenceFormat) -> tuple[Conversation, str]:
    """The conversation, and the address of the image that it is about.

    Raises:
        UserError: there is no image or more than one; a role that the model has not; turns that do not alternate.
    """
    turns: list[Turn] = []
    urls: list[str] = []
    for message in messages:
        if message.role not in ("user", "assistant"):
            raise UserError(
                f"the role {message.role!r} is unknown to this model, whose prompt has a fixed beginning; write what "
                "matters into the question"
            )
        text, images = content_of(message)
        if images and message.role == "assistant":
            raise UserError("an image in a message of the assistant; send it with a question of the user")
        urls += images
        if turns and turns[-1].role == message.role:
            raise UserError(f"two messages of the {message.role} follow each other; they alternate")
        is_question = message.role == "user"
        turns.append(Turn("user", (text,)) if is_question else Turn("assistant", with_tokens(text, format)))
        if is_question and not text.strip():
            raise UserError("a message of the user has no text; ask something about the image")
    if turns[0].role != "user" or turns[-1].role != "user":
        raise UserError("a conversation begins and ends with a message of the user")
    if len(urls) != 1:
        raise UserError(
            f"the messages have {len(urls)} images; a conversation is about one, sent as an image_url"
        )
    return Conversation(tuple(turns)), urls[0]


def content_of(message: Message) -> tuple[str, list[str]]:
    """The text of a message and the addresses of its images."""
    if message.content is None or isinstance(message.content, str):
        return message.content or "", []
    texts, urls = [], []
    for part in message.content:
        if part.type == "text":
            texts.append(part.text)
        elif part.image_url is None:
            raise UserError("a part of the type image_url has no image_url")
        else:
            urls.append(part.image_url if isinstance(part.image_url, str) else part.image_url.url)
    return "\n".join(texts), urls


def with_tokens(text: str, format: SequenceFormat) -> Text:
    """An earlier answer as pieces: its [SEG] and [NEG] are tokens again."""
    tokens = [token for token in (format.seg, format.neg) if token is not None]
    pieces = re.split(f"({'|'.join(map(re.escape, tokens))})", text)
    return tuple(Special(piece) if place % 2 else piece for place, piece in enumerate(pieces) if piece)


class Completion:
    """The responses to one request."""

    def __init__(self, model: str) -> None:
        self.id = f"chatcmpl-{uuid.uuid4().hex}"
        self.created = int(time.time())
        self.model = model

    def whole(
        self, text: str, masks: Sequence[MaskJson], finish: str, usage: dict[str, int]
    ) -> dict[str, Any]:
        """The response of a request without `stream`."""
        message = {"role": "assistant", "content": text, "refusal": None, "masks": list(masks)}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish}
        return {**self._head("chat.completion"), "choices": [choice], "usage": usage}

    def chunk(self, delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        """A part of a streamed response; the last one has the masks and the reason why it ends."""
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return {**self._head("chat.completion.chunk"), "choices": [choice]}

    def usage_chunk(self, usage: dict[str, int]) -> dict[str, Any]:
        """The chunk behind the last, for `stream_options`."""
        return {**self._head("chat.completion.chunk"), "choices": [], "usage": usage}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


def usage_of(num_prompt: int, num_answer: int) -> dict[str, int]:
    """The tokens of a request, its image among them."""
    return {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_answer,
        "total_tokens": num_prompt + num_answer,
    }


def error_body(message: str, status: int, code: str | None = None) -> dict[str, Any]:
    """An error as OpenAI's clients read it."""
    kind = {401: "authentication_error", 429: "rate_limit_error"}.get(
        status, "invalid_request_error" if status < 500 else "server_error"
    )
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}
