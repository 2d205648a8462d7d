"""Collating samples into batches, and the training data loader."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader

from model.inputs import Levels
from model.processor import LasagnaProcessor
from model.text.conversation import Conversation
from model.text.encoded import Encoded
from model.text.sequence import ComplexQuery
from utils.data.mixture import BatchIndices, Mixture
from utils.data.sam_keys import image_key
from utils.data.types import Batch, Sample, UnusableItemError


class Embeddings(Protocol):
    """A cache of SAM's image embeddings, indexed by image key."""

    def load(self, key: str) -> Levels | None:
        """The embedding, each level (channels, height, width); None if it is not in the cache."""


@dataclass(frozen=True)
class Collate:
    """A list of samples -> Batch. Each image appears once, however many conversations it has."""

    processor: LasagnaProcessor
    fast_resize: bool = False  # faster resizing, within two grey levels of Pillow's
    pack_rows: bool = False  # pack the conversations of one image into one row
    sam_cache: Embeddings | None = None  # images with a cached embedding are not resized for SAM
    max_length: int | None = None  # maximum number of text tokens in a packed row; longer rows are split
    pad_to_multiple_of: int = 1  # rows are padded to a multiple of this

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        images = [sample.image for sample in samples]
        keys, known = self.look_up(images)
        missing = tuple(index for index, embedding in enumerate(known) if embedding is None)
        inputs = self.processor.collate(
            images=images,
            conversations=[row for sample in samples for row in sample.encoded or sample.conversations],
            image_of_row=[index for index, sample in enumerate(samples) for _ in sample.conversations],
            masks=[sample.masks for sample in samples],
            padding_side="right",
            fast_resize=self.fast_resize,
            pack_rows=self.pack_rows,
            max_length=self.max_length,
            pad_to_multiple_of=self.pad_to_multiple_of,
            sam_needs=missing,
        )
        if len(missing) < len(samples):
            # Copies from the memory-mapped files, in the worker instead of the training process.
            found = [embedding for embedding in known if embedding is not None]
            levels = tuple(torch.stack(level) for level in zip(*found, strict=True))
            inputs = replace(inputs, sam_embeddings=levels)
        return Batch(
            inputs=inputs,
            sources=tuple(sample.source for sample in samples),
            datasets=tuple(sample.dataset for sample in samples),
            skipped=tuple(skipped for sample in samples for skipped in sample.skipped),
            classes_left_out=sum(sample.classes_left_out for sample in samples),
            conversations_left_out=sum(sample.conversations_left_out for sample in samples),
            num_shortened=sum(
                bool(sample.classes_left_out or sample.conversations_left_out) for sample in samples
            ),
            sam_keys=keys,
            sam_missing=missing if keys else (),
        )

    def look_up(self, images: Sequence[np.ndarray]) -> tuple[tuple[str, ...], list[Levels | None]]:
        """The images' keys in the SAM cache, and their cached embeddings, None where there is none."""
        if self.sam_cache is None:
            return (), [None] * len(images)
        transform = self.processor.sam_transform
        keys = tuple(image_key(image, transform, fast_resize=self.fast_resize) for image in images)
        return keys, [self.sam_cache.load(key) for key in keys]


@dataclass(frozen=True)
class LengthLimit:
    """Shortens a sample to the token limit: drops absent classes first, then conversations; no text is truncated.

    The limit applies to each conversation; a packed row that exceeds it is split and loses nothing. The order in
    which absent classes are dropped was drawn with the sample, so a sample depends only on seed and index.
    """

    processor: LasagnaProcessor
    max_length: int  # maximum number of text tokens in one conversation; image tokens are not counted

    def __call__(self, sample: Sample) -> Sample:
        """The sample, tokenized and if necessary shortened; raises UnusableItemError if no conversation fits."""
        kept: list[tuple[Conversation, Encoded]] = []
        masks: list[np.ndarray] = []
        classes_left_out = first = 0
        for conversation in sample.conversations:
            fitted, encoded = self.fitted(conversation)
            if encoded.num_text_tokens <= self.max_length:
                kept.append((fitted, encoded))
                masks.append(sample.masks[first : first + conversation.num_seg])
                if isinstance(conversation, ComplexQuery) and isinstance(fitted, ComplexQuery):
                    classes_left_out += len(conversation.absent) - len(fitted.absent)
            first += conversation.num_seg
        if not kept:
            raise UnusableItemError(
                sample.source,
                f"{encoded.num_text_tokens} text tokens, more than --model_max_length {self.max_length}",
            )
        all_kept = len(kept) == len(sample.conversations)
        return replace(
            sample,
            conversations=tuple(conversation for conversation, _ in kept),
            encoded=tuple(encoded for _, encoded in kept),
            masks=sample.masks if all_kept else np.concatenate(masks),
            classes_left_out=classes_left_out,
            conversations_left_out=len(sample.conversations) - len(kept),
        )

    def fitted(self, conversation: Conversation) -> tuple[Conversation, Encoded]:
        """The conversation with as many absent classes as fit (binary search), or the minimum if none fit."""
        encoded = self.processor.encode(conversation)
        if encoded.num_text_tokens <= self.max_length or not isinstance(conversation, ComplexQuery):
            return conversation, encoded
        fewest = conversation.with_num_absent(conversation.min_absent)
        best = fewest, self.processor.encode(fewest)
        fits, too_many = conversation.min_absent, len(conversation.absent)
        while too_many - fits > 1:
            number = (fits + too_many) // 2
            shorter = conversation.with_num_absent(number)
            encoded = self.processor.encode(shorter)
            if encoded.num_text_tokens <= self.max_length:
                fits, best = number, (shorter, encoded)
            else:
                too_many = number
        return best


def build_loader(
    mixture: Mixture,
    processor: LasagnaProcessor,
    *,
    batch_size: int,
    num_batches: int,
    first_sample: int = 0,
    rank: int = 0,
    world_size: int = 1,
    num_workers: int = 0,
    fast_resize: bool = False,
    pack_rows: bool = False,
    pin_memory: bool = False,
    sam_cache: Embeddings | None = None,
    max_length: int | None = None,
    pad_to_multiple_of: int = 1,
) -> DataLoader[Batch]:
    """The next `num_batches` micro-batches of one rank from sample `first_sample` on, in order; see BatchIndices.

    Batches do not depend on the number of workers; a resumed run continues at `first_sample`. With a
    `sam_cache`, pass each batch through its `complete` before the model.
    """
    indices = BatchIndices(
        batch_size=batch_size,
        num_batches=num_batches,
        first_sample=first_sample,
        rank=rank,
        world_size=world_size,
    )
    return DataLoader(
        mixture,  # a map-style data set of unlimited length
        batch_sampler=indices,
        collate_fn=Collate(processor, fast_resize, pack_rows, sam_cache, max_length, pad_to_multiple_of),
        num_workers=num_workers,
        pin_memory=pin_memory,
        persistent_workers=num_workers > 0,
        worker_init_fn=_one_thread_a_worker,
    )


def _one_thread_a_worker(worker_id: int) -> None:
    cv2.setNumThreads(0)  # torch limits its threads in workers, OpenCV does not
