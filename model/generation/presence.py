"""The probability that a question has a target in its image: [SEG] against what begins "there is none".

An answer in words decides in its wording, long before its token: after "It is not in this image" a [NEG] is certain.
So the model reads the beginning that the fixed wordings of both answers share, and the next token decides:

    found        It is [SEG].
    not found    It is not in this image [NEG].
    read         It is                 p = P([SEG]) / (P([SEG]) + P(not))

Both wordings are equally frequent among the paraphrases of training, so that p has only the bias of the data. It
takes one pass of the language model, without decoding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from model.generation.prompts import read_prompts
from model.outputs import EncodedImage
from model.processor import LasagnaProcessor
from model.text.conversation import Conversation
from model.text.special_tokens import Text

if TYPE_CHECKING:
    from model.lasagna import LasagnaForConditionalGeneration


def target_probabilities(
    model: LasagnaForConditionalGeneration,
    processor: LasagnaProcessor,
    images: Sequence[np.ndarray | EncodedImage],
    queries: Sequence[Text],
    image_of_row: Sequence[int],
) -> list[float | None]:
    """For each query about an image the probability, 0 to 1, that it is answered with a mask.

    None for each where the prompt template writes the two answers in ways that cannot be compared.
    """
    parting = answers_part(processor)
    if not queries or parting is None:
        return [None] * len(queries)
    shared, found, not_found = parting
    prompts = read_prompts(
        model, processor, images, [Conversation.of(query) for query in queries], image_of_row
    )
    embeddings, mask, positions = prompts.embeddings, prompts.mask, prompts.positions
    if shared:
        # Prompts are padded on the left, so the shared beginning of the answers follows each of them directly.
        beginning = torch.tensor([shared] * len(queries)).to(model.device)
        following = torch.arange(1, len(shared) + 1).to(model.device)
        embeddings = torch.cat([embeddings, model.embed(beginning)], dim=1)
        mask = torch.cat([mask, mask.new_ones(beginning.shape)], dim=1)
        positions = torch.cat([positions, positions[..., -1:] + following], dim=-1)
    state = model.language_states(embeddings, mask, positions, prompts.cache)[:, -1]
    logits = model.text_logits(state)[:, [found, not_found]]  # (N, 2)
    chances: list[float] = logits.double().softmax(dim=-1)[:, 0].tolist()
    return list(chances)


def answers_part(processor: LasagnaProcessor) -> tuple[list[int], int, int] | None:
    """The ids with which both fixed answers begin, and the next id of each: [SEG], and that of "not".

    None if they are not written behind the same prompt, or if one is the beginning of the other.
    """
    query: Text = ("?",)
    prompt = processor.encode(Conversation.of(query)).input_ids
    answers = [
        processor.encode(Conversation.of(query, answer)).input_ids
        for answer in (processor.format.found(), processor.format.not_found())
    ]
    if any(ids[: len(prompt)] != prompt for ids in answers):
        return None
    found, not_found = (ids[len(prompt) :] for ids in answers)
    for place, (one, other) in enumerate(zip(found, not_found, strict=False)):
        if one != other:
            return found[:place], one, other
    return None
