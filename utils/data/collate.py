"""Samples to batches, and the loader that a training run draws them from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
from torch.utils.data import DataLoader

from model.processor import LasagnaProcessor
from utils.data.mixture import BatchIndices, Mixture
from utils.data.types import Batch, Sample


@dataclass(frozen=True)
class Collate:
    """A list of samples -> Batch. Each image is there once, however many conversations it has."""

    processor: LasagnaProcessor
    fast_resize: bool = False  # SAM's picture within two grey levels, in less time
    pack_rows: bool = False  # conversations of one image share a row of the language model

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        inputs = self.processor.collate(
            images=[sample.image for sample in samples],
            conversations=[conversation for sample in samples for conversation in sample.conversations],
            image_of_row=[index for index, sample in enumerate(samples) for _ in sample.conversations],
            masks=[sample.masks for sample in samples],
            padding_side="right",
            fast_resize=self.fast_resize,
            pack_rows=self.pack_rows,
        )
        return Batch(
            inputs=inputs,
            sources=tuple(sample.source for sample in samples),
            datasets=tuple(sample.dataset for sample in samples),
            skipped=tuple(skipped for sample in samples for skipped in sample.skipped),
        )


@dataclass(frozen=True)
class LengthLimit:
    """What is too long about a sample, or None; a Mixture replaces such samples by another draw."""

    processor: LasagnaProcessor
    max_length: int  # text tokens of one conversation; image features are not counted

    def __call__(self, sample: Sample) -> str | None:
        for conversation in sample.conversations:
            num_tokens = self.processor.encode(conversation).num_text_tokens
            if num_tokens > self.max_length:
                return f"{num_tokens} text tokens, more than --model_max_length {self.max_length}"
        return None


def build_loader(
    mixture: Mixture,
    processor: LasagnaProcessor,
    *,
    batch_size: int,
    num_batches: int,
    start: int = 0,
    rank: int = 0,
    world_size: int = 1,
    num_workers: int = 0,
    fast_resize: bool = False,
    pack_rows: bool = False,
    pin_memory: bool = False,
) -> DataLoader[Batch]:
    """The micro-batches `start` to `start + num_batches` of one rank, in order; see BatchIndices.

    The same batches come out whatever the number of workers; `start` is where a resumed run goes on.
    """
    indices = BatchIndices(
        batch_size=batch_size, num_batches=num_batches, start=start, rank=rank, world_size=world_size
    )
    return DataLoader(
        mixture,  # type: ignore[arg-type]  # a map-style data set without an end
        batch_sampler=indices,
        collate_fn=Collate(processor, fast_resize, pack_rows),
        num_workers=num_workers,
        pin_memory=pin_memory,
        persistent_workers=num_workers > 0,
        worker_init_fn=_one_thread_a_worker,
    )


def _one_thread_a_worker(worker_id: int) -> None:
    cv2.setNumThreads(0)  # torch limits its own threads in a worker; OpenCV has to be told
