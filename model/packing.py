"""Several conversations about one image in one row: the image prefix once, then what is each conversation's own.

A conversation sees the prefix and itself, at the positions that it would have alone, so losses, gradients and masks
are those of one row each, for the language model's work on far fewer tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.conversation import IGNORE_INDEX, Encoded

PREFIX, PADDING = 0, -1  # segment ids; conversations count from 1


@dataclass(frozen=True, kw_only=True)
class PackedRow:
    """One row; all lists have its length."""

    input_ids: list[int]
    labels: list[int]
    position_ids: list[int]
    segment_ids: list[int]  # PREFIX, then 1 for the first conversation, 2 for the second, ...


def pack(conversations: Sequence[Encoded], image_id: int) -> PackedRow:
    """Conversations about one image as one row; the shared prefix ends with the image's last token.

    Raises:
        ValueError: the conversations do not begin alike, so they are not about one image in one template.
    """
    first = conversations[0].input_ids
    length = len(first) - first[::-1].index(image_id)
    prefix = first[:length]
    ids, segments = list(prefix), [PREFIX] * length
    labels, positions = [IGNORE_INDEX] * length, list(range(length))
    for number, encoded in enumerate(conversations, start=1):
        if encoded.input_ids[:length] != prefix:
            raise ValueError("conversations of one row must share their text up to the end of the image")
        own = encoded.input_ids[length:]
        ids += own
        # What follows the image is the user's text: no first token is learned, so nothing is predicted across a seam.
        labels += encoded.labels[length:]
        positions += range(length, length + len(own))
        segments += [number] * len(own)
    return PackedRow(input_ids=ids, labels=labels, position_ids=positions, segment_ids=segments)


def packed_attention(segment_ids: Tensor) -> Tensor:
    """(N, T) segment ids -> (N, 1, T, T) bool, True where the row's query may look at the column's key."""
    length = segment_ids.shape[1]
    query, key = segment_ids[:, :, None], segment_ids[:, None, :]
    earlier = torch.ones(length, length, dtype=torch.bool, device=segment_ids.device).tril()
    return (earlier & ((key == PREFIX) | (key == query))).unsqueeze(1)
