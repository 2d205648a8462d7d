"""Complex queries: decoded under the constraint of their format, or generated freely and read.

A list of classes may be longer than one query; what is returned is one answer for each image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from model.decoders.decoded import Instances
from model.generation.answers import read_answer
from model.generation.decoding import decode_choices
from model.generation.finding import find, with_instances
from model.generation.prompts import read_prompts
from model.outputs import ChatAnswer, EncodedImage, Segmentation, SimilarityMaps
from model.processor import LasagnaProcessor
from model.text.conversation import Conversation
from model.text.format import SequenceFormat

if TYPE_CHECKING:
    from model.lasagna import LasagnaForConditionalGeneration

TOKENS_PER_CLASS = 16  # for free generation: enough for any class name with its choice


def segment_constrained(
    model: LasagnaForConditionalGeneration,
    images: Sequence[np.ndarray | EncodedImage],
    queries: list[tuple[int, tuple[str, ...]]],
    processor: LasagnaProcessor,
    presence_threshold: float | None,
    rethreshold: float | None,
    min_score: float,
) -> list[Segmentation]:
    """Decodes each query under the constraint of its format.

    Args:
        queries: the index of an image and the class names of one query about it; arguments are those of
            `InferenceMixin.segment_batch`.
    """
    owners = [owner for owner, _ in queries]
    conversations, plans = zip(*(processor.plan(names) for _, names in queries), strict=True)
    prompts = read_prompts(model, processor, images, conversations, owners)
    answers = decode_choices(
        model.backbone.language_model,
        model.text_logits,
        prompts.embeddings,
        prompts.mask,
        plans,
        prompt_positions=prompts.positions,
        embed=model.embed,
        run=model.language_states,
        select_rows=model.backbone.select_rows,
        can_crop=model.backbone.can_crop,
        cache=prompts.cache,
        seg_id=processor.token_ids.seg,
        neg_id=processor.token_ids.neg,
        presence_threshold=presence_threshold,
        rethreshold=rethreshold,
        states_per_choice=model.sam.states_per_prompt,
    )
    rows_of = rows_of_images(owners, len(images))
    states = [torch.cat([answers[i].states for i in rows]) for rows in rows_of]
    present = [[one for i in rows for one in answers[i].present] for rows in rows_of]
    found = find(model, states, present, prompts.images, prompts.image_states, min_score)
    results = [
        Segmentation(
            names=tuple(name for i in rows for name in answers[i].names),
            present=present[index],
            probabilities=[p for i in rows for p in answers[i].probabilities],
            masks=of_image.masks,
            num_passes=max(answers[i].num_passes for i in rows),
            presence=of_image.presence,
            states=states[index],
            image_states=None if prompts.image_states is None else prompts.image_states[index],
            maps=of_image.maps,
        )
        for index, (rows, of_image) in enumerate(zip(rows_of, found, strict=True))
    ]
    return [with_instances(*each) for each in zip(results, (one.instances for one in found), strict=True)]


def segment_freely(
    model: LasagnaForConditionalGeneration,
    images: Sequence[np.ndarray | EncodedImage],
    queries: list[tuple[int, tuple[str, ...]]],
    processor: LasagnaProcessor,
    match_distance: float,
    min_score: float,
) -> list[Segmentation]:
    """For models not trained to answer every class in order: generate freely, then parse the answer."""
    owners = [owner for owner, _ in queries]
    conversations = [Conversation.of(processor.format.query(names)) for _, names in queries]
    most = max(len(names) for _, names in queries)
    answers = model.generate_batch(
        images,
        conversations,
        image_of_row=owners,
        processor=processor,
        max_new_tokens=TOKENS_PER_CLASS * (most + 1),
        min_score=min_score,
    )
    read = [
        _in_order_of_query(names, answer, processor.format, match_distance)
        for (_, names), answer in zip(queries, answers, strict=True)
    ]
    results = []
    for rows in rows_of_images(owners, len(images)):
        parts = [read[row] for row in rows]
        instances = [one for part in parts for one in part.instances or ()]
        found = Segmentation(
            names=tuple(name for part in parts for name in part.names),
            present=[present for part in parts for present in part.present],
            probabilities=[float(present) for part in parts for present in part.present],
            masks=torch.cat([part.masks for part in parts]),
            num_passes=max(len(answers[row].token_ids) for row in rows),
            unattributed=tuple(words for part in parts for words in part.unattributed),
            maps=SimilarityMaps.joined([part.maps for part in parts]),
        )
        has_instances = all(part.instances is not None for part in parts)
        results.append(with_instances(found, instances if has_instances else None))
    return results


class _ReadQuery(NamedTuple):
    """What a free answer says about the classes of its query, in their order."""

    names: tuple[str, ...]
    present: list[bool]
    masks: Tensor  # (number of present classes, height, width)
    unattributed: tuple[str, ...]
    maps: SimilarityMaps | None
    instances: list[Instances] | None


def _in_order_of_query(
    names: tuple[str, ...], answer: ChatAnswer, format: SequenceFormat, match_distance: float
) -> _ReadQuery:
    read = read_answer(answer, names, format, max_distance=match_distance)
    order = sorted(range(len(read.found)), key=read.found.__getitem__)
    return _ReadQuery(
        names=names,
        present=[index in read.found for index in range(len(names))],
        masks=read.masks[order],
        unattributed=read.unattributed,
        maps=None if read.maps is None else read.maps[order],
        instances=None if read.instances is None else [read.instances[place] for place in order],
    )


def rows_of_images(owners: Sequence[int], num_images: int) -> list[list[int]]:
    """For each image the indices of its rows, ascending."""
    return [[row for row, owner in enumerate(owners) if owner == image] for image in range(num_images)]
