"""Prompts about images, ready for decoding: each image is encoded once, and so is the prefix that its prompts share.

Every prompt begins with the same system text and its image. If several prompts are about one image, the prefill of
that prefix runs once per image, and its key-value cache is copied to each row. This is exact, and the language model
processes far fewer tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from model.batching import check_rows
from model.errors import UserError
from model.outputs import EncodedImage, EncodedImages
from model.processor import LasagnaProcessor
from model.text.conversation import Conversation
from model.text.packing import shared_prefix

if TYPE_CHECKING:
    from model.lasagna import LasagnaForConditionalGeneration

# Of one question. No model of this family was trained on longer ones, and attention grows with the square.
MAX_PROMPT_TOKENS = 8192


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """N conversations about B encoded images, with P prefix tokens in the cache; P > 0 if prompts share an image."""

    images: EncodedImages
    embeddings: Tensor  # (N, T, hidden_dim) of the tokens that are not in the cache, left-padded
    mask: Tensor  # (N, P + T), 1 for a token, 0 for padding
    cache: DynamicCache  # key-value cache of P tokens in N rows


def read_prompts(
    model: LasagnaForConditionalGeneration,
    processor: LasagnaProcessor,
    images: Sequence[np.ndarray | EncodedImage],
    conversations: Sequence[Conversation],
    image_of_row: Sequence[int],
) -> Prompts:
    """Encodes (height, width, 3) uint8 images, unless already encoded, and conversations that end with the user.

    Raises:
        ValueError: there are no conversations; one ends with an answer or has an image index out of range; or prompts
            share an image but not their prefix.
    """
    check_rows(conversations, image_of_row, len(images))
    for conversation in conversations:
        if conversation.turns[-1].role != "user":
            raise ValueError(
                f"a conversation to be answered ends with the user, got {conversation.turns[-1]}"
            )
    encoded = [processor.encode(conversation) for conversation in conversations]
    longest = max(len(row.input_ids) - row.num_image_tokens for row in encoded)
    if longest > MAX_PROMPT_TOKENS:
        raise UserError(
            f"the question has {longest:,} tokens, of at most {MAX_PROMPT_TOKENS:,}; ask something shorter, or fewer "
            "classes at a time"
        )
    found = encode_batch(model, processor, images)
    rows = processor.row_inputs(encoded, "left").to(model.device)
    ids, mask = rows.input_ids, rows.attention_mask
    owners = torch.tensor(list(image_of_row)).to(model.device, non_blocking=True)
    cache = DynamicCache()
    if len(set(image_of_row)) == len(image_of_row):
        embeddings = model.embed(ids, found.features[owners])
        return Prompts(images=found, embeddings=embeddings, mask=mask, cache=cache)
    prefix = torch.tensor([shared_prefix(encoded, processor.token_ids.image)] * len(found))
    start = model.embed(prefix.to(model.device), found.features)
    length = start.shape[1]
    model.language_states(start, mask.new_ones(len(found), length), cache=cache)
    cache.batch_select_indices(owners)
    # Without the first `length` columns each row keeps its own tokens at the end, with the same amount of padding.
    own = mask[:, : ids.shape[1] - length]
    return Prompts(
        images=found,
        embeddings=model.embed(ids[:, length:]),
        mask=torch.cat([mask.new_ones(len(ids), length), own], dim=1),
        cache=cache,
    )


def encode_batch(
    model: LasagnaForConditionalGeneration,
    processor: LasagnaProcessor,
    images: Sequence[np.ndarray | EncodedImage],
) -> EncodedImages:
    """Encodes one or more images; already encoded ones are used as they are.

    Raises:
        ValueError: an image was encoded by another model.
    """
    fresh = [image for image in images if not isinstance(image, EncodedImage)]
    if fresh:
        found = model.encode_images(**processor.image_inputs(fresh).to(model.device).fields())
        if len(fresh) == len(images):
            return found
    rest = iter(found[index] for index in range(len(fresh)))
    return EncodedImages.of(
        [
            _at_home(image, model, processor) if isinstance(image, EncodedImage) else next(rest)
            for image in images
        ]
    )


def _at_home(
    image: EncodedImage, model: LasagnaForConditionalGeneration, processor: LasagnaProcessor
) -> EncodedImage:
    """An encoded image on the model's device."""
    settings = model.config.sam_settings
    features = processor.num_image_tokens, model.config.vlm_config.text_config.hidden_size
    here = features, *settings.embedding_shapes
    found = tuple(tuple(part.shape) for part in (image.features, *image.embedding))
    if found != here:
        raise ValueError(
            f"the image was encoded by another model (shapes {found}, here {here}); encode it again"
        )
    return replace(
        image,
        features=image.features.to(model.device),
        embedding=tuple(level.to(model.device) for level in image.embedding),
    )
