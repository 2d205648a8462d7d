"""A conversation as token ids and labels.

Only the assistant's text and the end token after it have labels (are *learned*); all other labels are IGNORE_INDEX.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from transformers import PreTrainedTokenizerBase

from model.text.conversation import Conversation
from model.text.placeholder import Cells, Placeholder, token_positions
from model.text.special_tokens import IMAGE, Special, check_encodable
from model.text.templates import OwnChatTemplate, Segment, render
from model.text.tokens import encode_segments

IGNORE_INDEX = -100  # label of a token without a loss, the default ignore_index of torch.nn.CrossEntropyLoss


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
