"""Sequence packing: several conversations about one image share a row, with the image prefix only once.

A masked attention lets each conversation attend to the prefix and to itself, and its position ids are those that it
would have alone. So losses, gradients and masks equal those of unpacked rows, and the language model processes far
fewer tokens. Conversations that are too long for one row are split over several, each with the prefix.

Two conversations about one image of two tokens:

# ids       <s> USER img img | what ? A [SEG] </s> | where ? B [SEG] </s>
# segment    0    0   0   0     1   1 1   1    1       2   2 2   2    2     0 = shared prefix
# position   0    1   2   3     4   5 6   7    8       4   5 6   7    8     restarts after the prefix

"where" attends to <s> USER img img and to itself, not to the first conversation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from model.text.encoded import IGNORE_INDEX, Encoded

PREFIX, PADDING = 0, -1  # segment ids; conversations count from 1


@dataclass(frozen=True, kw_only=True)
class PackedRow:
    """One row; all lists have its length."""

    input_ids: list[int]
    labels: list[int]
    position_ids: np.ndarray  # (axes, length) int64
    segment_ids: list[int]  # PREFIX, then 1 for the first conversation, 2 for the second, ...


def pack_within(
    conversations: Sequence[Encoded], image_id: int, max_length: int | None = None
) -> list[PackedRow]:
    """Conversations about one image in as few rows as their order allows.

    Args:
        conversations: their order is kept.
        image_id: id of the image's tokens.
        max_length: maximum number of text tokens in a row, prefix included; image tokens are not counted. A longer
            conversation gets a row of its own. None: no limit, one row.
    """
    num_shared = sum(token != image_id for token in shared_prefix(conversations, image_id))
    groups: list[list[Encoded]] = []
    length = 0
    for encoded in conversations:
        own = encoded.num_text_tokens - num_shared
        if not groups or (max_length is not None and length + own > max_length):
            groups.append([])
            length = num_shared
        groups[-1].append(encoded)
        length += own
    return [pack(group, image_id) for group in groups]


def pack(conversations: Sequence[Encoded], image_id: int) -> PackedRow:
    """Conversations about one image as one row; the shared prefix ends with the image's last token.

    Raises:
        ValueError: the prefixes differ, so the conversations are not about one image in one template.
    """
    prefix, rest = split_prefix(conversations, image_id)
    length = len(prefix.input_ids)
    ids, segments = list(prefix.input_ids), [PREFIX] * length
    labels, positions = [IGNORE_INDEX] * length, [prefix.positions]
    for number, own in enumerate(rest, start=1):
        ids += own.input_ids
        # The text after the image is the user's, without labels, so no target is predicted from another conversation.
        labels += own.labels
        positions.append(own.positions)
        segments += [number] * len(own.input_ids)
    return PackedRow(
        input_ids=ids,
        labels=labels,
        position_ids=np.concatenate(positions, axis=1),
        segment_ids=segments,
    )


def shared_prefix(conversations: Sequence[Encoded], image_id: int) -> list[int]:
    """The ids up to the image's last token, which all conversations have in common.

    Raises:
        ValueError: the prefixes differ, so the conversations are not in one template.
    """
    first = conversations[0].input_ids
    prefix = first[: len(first) - first[::-1].index(image_id)]
    if any(encoded.input_ids[: len(prefix)] != prefix for encoded in conversations):
        raise ValueError("conversations that share an image must share their text up to the end of the image")
    return prefix


def split_prefix(conversations: Sequence[Encoded], image_id: int) -> tuple[Encoded, list[Encoded]]:
    """The prefix that conversations about one image share, and the rest of each; errors as in `shared_prefix`."""
    length = len(shared_prefix(conversations, image_id))
    return conversations[0].before(length), [each.after(length) for each in conversations]


def packed_attention(segment_ids: Tensor) -> Tensor:
    """(N, T) segment ids -> attention mask (N, 1, T, T), bool, True where query (row) may attend to key (column)."""
    length = segment_ids.shape[1]
    query, key = segment_ids[:, :, None], segment_ids[:, None, :]
    earlier = torch.ones(length, length, dtype=torch.bool, device=segment_ids.device).tril()
    return (earlier & ((key == PREFIX) | (key == query))).unsqueeze(1)


def packed_blocks(segment_ids: Tensor) -> BlockMask:
    """The mask of `packed_attention` for flex attention, which skips blocks that are masked entirely."""

    def sees(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        segment = segment_ids[row, key]
        return (query >= key) & ((segment == PREFIX) | (segment == segment_ids[row, query]))

    num_rows, length = segment_ids.shape
    return create_block_mask(sees, num_rows, None, length, length, device=segment_ids.device)
