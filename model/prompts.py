"""Prompts about images, ready to be answered: images are encoded once, and so is what their prompts share.

Every prompt begins with the same words and its image. Where several are about one image, that prefix is run once
for the image, and its keys and values become the beginning of each row: exact, for the language model's work on far
fewer tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from model.conversation import Conversation
from model.outputs import EncodedImages
from model.packing import shared_prefix
from model.processor import LasagnaProcessor

if TYPE_CHECKING:
    from model.lasagna import LasagnaForConditionalGeneration

IMAGE_ARGUMENTS = ("clip_images", "sam_images", "resized_sizes", "original_sizes")


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """N conversations about B encoded images; P tokens of each have been run, 0 unless an image is asked twice."""

    images: EncodedImages
    embeddings: Tensor  # (N, T, hidden_dim) of what has not been run, padded left
    mask: Tensor  # (N, P + T), 1 where a token stands
    cache: DynamicCache  # keys and values of P tokens in N rows


def read_prompts(
    model: LasagnaForConditionalGeneration,
    processor: LasagnaProcessor,
    images: Sequence[np.ndarray],
    conversations: Sequence[Conversation],
    image_of_row: Sequence[int],
) -> Prompts:
    """Encodes (height, width, 3) uint8 images and conversations about them that end with the user.

    Raises:
        ValueError: images are asked several times, and the prompts do not begin alike.
    """
    encoded = [processor.encode(conversation) for conversation in conversations]
    batch = processor.collate(images, encoded, image_of_row, padding_side="left")
    batch = move_batch(batch, model.device)
    found = model.encode_images(**{name: batch[name] for name in IMAGE_ARGUMENTS})
    ids, mask, owners = batch["input_ids"], batch["attention_mask"], batch["image_of_row"]
    cache = DynamicCache()
    if len(set(image_of_row)) == len(image_of_row):
        embeddings = model.embed(ids, found.features[owners])
        return Prompts(images=found, embeddings=embeddings, mask=mask, cache=cache)
    prefix = torch.tensor([shared_prefix(encoded, processor.token_ids.image)] * len(found))
    start = model.embed(prefix.to(model.device), found.features)
    length = start.shape[1]
    model.language_states(start, mask.new_ones(len(found), length), cache=cache)
    cache.batch_select_indices(owners)
    # Cutting `length` columns off leaves each row's own tokens at the end, behind as much padding as before.
    own = mask[:, : ids.shape[1] - length]
    return Prompts(
        images=found,
        embeddings=model.embed(ids[:, length:]),
        mask=torch.cat([mask.new_ones(len(ids), length), own], dim=1),
        cache=cache,
    )


def move_batch(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """The tensors of a batch, also those in lists, on `device`; sizes and indices stay on the CPU."""

    def move(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.to(device, non_blocking=True)
        if isinstance(value, list) and value and isinstance(value[0], Tensor):
            return [move(item) for item in value]
        return value

    return {name: move(value) for name, value in batch.items()}
