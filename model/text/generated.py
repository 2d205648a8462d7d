"""Earlier answers in a conversation, read again by the tokens that were generated.

Another tokenization of the same text would be another answer, and a template may write something before an answer in
the middle of a conversation, such as a space, that the model had not read when it generated this one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import groupby

from model.text.conversation import Conversation
from model.text.encoded import IGNORE_INDEX, Encoded


def encode_as_generated(encode: Callable[[Conversation], Encoded], conversation: Conversation) -> Encoded:
    """As `encode`, with the tokens of generated answers, each behind the prompt that it was generated from.

    # encode        USER: Where? ASSISTANT:_  It is [SEG] . </s>  USER: Why? ASSISTANT:
    # runs                  0                        1                   2              one for each turn
    # as generated  USER: Where? ASSISTANT:   Itis [SEG] . </s>   USER: Why? ASSISTANT:
    """
    encoded = encode(conversation)
    turns = conversation.turns
    if all(turn.token_ids is None for turn in turns):
        return encoded
    runs = runs_of(encoded)
    assert len(runs) == len(turns), "every turn has tokens: an answer has its end token"
    for index, turn in enumerate(turns):
        if turn.token_ids is not None:
            end = runs[index][-1:]
            runs[index] = [*turn.token_ids, *(end if list(turn.token_ids[-1:]) != end else [])]
            runs[index - 1] = runs_of(encode(Conversation(turns[:index])))[-1]
    return replace(
        encoded,
        input_ids=[token for run in runs for token in run],
        labels=[token if index % 2 else IGNORE_INDEX for index, run in enumerate(runs) for token in run],
    )


def runs_of(encoded: Encoded) -> list[list[int]]:
    """The tokens, cut where labels begin and end: what the user says, an answer with its end token, and so on."""
    pairs = zip(encoded.input_ids, encoded.labels, strict=True)
    return [[token for token, _ in run] for _, run in groupby(pairs, lambda pair: pair[1] != IGNORE_INDEX)]
