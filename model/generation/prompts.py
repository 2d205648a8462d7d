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
from transformers import Cache

from model.batching import check_rows
from model.errors import UserError
from model.inputs import RowInputs
from model.outputs import EncodedImage, EncodedImages
from model.processor import LasagnaProcessor
from model.text.conversation import Conversation
from model.text.encoded import Encoded
from model.text.packing import split_prefix

if TYPE_CHECKING:
    from model.lasagna import LasagnaForConditionalGeneration

# Of one question. No model of this family was trained on longer ones, and attention grows with the square.
MAX_PROMPT_TOKENS = 8192


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """N conversations about B encoded images, with P prefix tokens in the cache; P > 0 if prompts share an image."""

    images: EncodedImages
    embeddings: Tensor  # (N, T, hidden_dim) of the tokens that are not in the cache, left-padded
    positions: Tensor  # (N, T) or (3, N, T) of the same tokens, 0 at padding
    mask: Tensor  # (N, P + T), 1 for a token, 0 for padding
    cache: Cache  # key-value cache of P tokens in N rows
    # B of (tokens of the image's grid, hidden_dim): their states, where the model has a spatial prompt.
    image_states: tuple[Tensor, ...] | None = None


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
    encoded = [
        row.with_image(found.placeholders[owner]) for row, owner in zip(encoded, image_of_row, strict=True)
    ]
    # With a spatial prompt the states of an image are read in the pass over its prefix.
    needs_prefix = model.backbone.needs_prefix(found.features) or model.spatial_prompt is not None
    is_alone = len(set(image_of_row)) == len(image_of_row) and not needs_prefix
    # A model whose cache forgets nothing takes no padding between a prefix and what follows it.
    if is_alone or not model.backbone.can_crop:
        rows = processor.row_inputs(encoded, "left").to(model.device)
        return Prompts(
            images=found,
            embeddings=model.embed(rows.input_ids, found.features.select(image_of_row)),
            positions=last_positions(rows, rows.attention_mask),
            mask=rows.attention_mask,
            cache=model.backbone.new_cache(),
        )
    return _after_prefixes(model, processor, found, encoded, image_of_row)


def _after_prefixes(
    model: LasagnaForConditionalGeneration,
    processor: LasagnaProcessor,
    found: EncodedImages,
    encoded: Sequence[Encoded],
    image_of_row: Sequence[int],
) -> Prompts:
    """The prompts with the prefix of each image in the cache; images may differ in length."""
    used = sorted(set(image_of_row))
    of_image = [[row for row, owner in zip(encoded, image_of_row, strict=True) if owner == i] for i in used]
    prefixes = [split_prefix(rows, processor.token_ids.image)[0] for rows in of_image]
    start = processor.row_inputs(prefixes, "left").to(model.device)
    features = found.features.select(used)
    cache = model.backbone.new_cache()
    states = model.language_states(
        model.embed(start.input_ids, features),
        start.attention_mask,
        last_positions(start, start.attention_mask),
        cache,
        model.backbone.deep(start.input_ids, features),
    )
    owners = torch.tensor([used.index(owner) for owner in image_of_row]).to(model.device, non_blocking=True)
    model.backbone.select_rows(cache, owners)
    lengths = [len(prefixes[used.index(owner)].input_ids) for owner in image_of_row]
    own = processor.row_inputs(
        [row.after(length) for row, length in zip(encoded, lengths, strict=True)], "left"
    ).to(model.device)
    mask = torch.cat([start.attention_mask[owners], own.attention_mask], dim=1)
    return Prompts(
        images=found,
        embeddings=model.embed(own.input_ids),
        positions=last_positions(own, mask),
        mask=mask,
        cache=cache,
        image_states=None
        if model.spatial_prompt is None
        else _image_states(states, prefixes, found, used, processor.token_ids.image),
    )


def _image_states(
    states: Tensor, prefixes: Sequence[Encoded], images: EncodedImages, used: Sequence[int], image_id: int
) -> tuple[Tensor, ...]:
    """For each image the states of its grid's tokens; none for those that no prompt is about.

    Args:
        states: (len(used), P, hidden_dim) of the left-padded prefixes.
        used: the images that the prefixes are of.
    """
    found = [states.new_zeros(0, states.shape[-1])] * len(images)
    for row, (prefix, image) in enumerate(zip(prefixes, used, strict=True)):
        padding = states.shape[1] - len(prefix.input_ids)
        columns = [padding + column for column, token in enumerate(prefix.input_ids) if token == image_id]
        places = torch.tensor(images.token_grids[image].pick(columns)).to(states.device, non_blocking=True)
        found[image] = states[row, places]
    return tuple(found)


def last_positions(rows: RowInputs, mask: Tensor) -> Tensor:
    """Positions of the tokens of `rows`, which are the last columns of `mask`: those given, else their numbers."""
    if rows.position_ids is not None:
        return rows.position_ids
    return (mask.cumsum(-1) - 1).clamp(min=0)[:, -rows.input_ids.shape[1] :]


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
    features = image.placeholder.num_image_tokens, model.config.vlm_config.text_config.hidden_size
    if processor.images.placeholder is not None:
        features = processor.images.placeholder.num_image_tokens, features[1]
    here = features, *settings.embedding_shapes
    found = tuple(tuple(part.shape) for part in (*image.features.tokens, *image.embedding))
    if found != here:
        raise ValueError(
            f"the image was encoded by another model (shapes {found}, here {here}); encode it again"
        )
    return replace(
        image,
        features=image.features.to(model.device),
        embedding=tuple(level.to(model.device) for level in image.embedding),
    )
