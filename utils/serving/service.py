"""What the routes of the server share: its model, its limits, and how requests become jobs and jobs answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import numpy as np
from anyio import CapacityLimiter, to_thread
from fastapi import Request
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from model.lasagna import LasagnaForConditionalGeneration
from model.outputs import ChatAnswer
from model.text.conversation import Conversation
from utils.data.images import image_of_bytes
from utils.serving.answers import Answer, Asking, answer_in_words, is_ended, split_names, unique_names
from utils.serving.batching import Batcher
from utils.serving.dialect import ChatRequest, SegmentRequest, Wanted, usage_of
from utils.serving.fetch import Limits, image_bytes, is_address
from utils.serving.gate import Counts
from utils.serving.jobs import ChatJob, Job, SegmentJob
from utils.serving.schema import MaskJson, mask_json

DECODED_AT_ONCE = 8  # images; one may take ten times its pixels for a moment
FETCHED_AT_ONCE = 8  # slow hosts keep threads, and only those of each other
T = TypeVar("T")


class GoneError(Exception):
    """Nobody waits for the answer any more."""


class Service:
    """What the routes share: the batcher, limits, and how answers are written."""

    def __init__(
        self,
        model: LasagnaForConditionalGeneration,
        asking: Asking,
        *,
        name: str,
        limits: Limits,
        max_pixels: int,
        max_batch: int,
        max_waiting: int,
    ) -> None:
        self.model, self.asking, self.name = model, asking, name
        self.limits, self.max_pixels = limits, max_pixels
        self.counts = Counts()
        self.batcher = Batcher(
            model,
            max_batch=max_batch,
            max_waiting=max_waiting,
            classes_per_query=asking.classes_per_query,
            on_batch=self.counts.count_batch,
        )
        self.counts.waiting.set_function(lambda: self.batcher.num_waiting)
        self.decoders, self.fetchers = CapacityLimiter(DECODED_AT_ONCE), CapacityLimiter(FETCHED_AT_ONCE)

    async def image(self, url: str) -> np.ndarray:
        """The image of a request, (height, width, 3) uint8."""
        threads = self.fetchers if is_address(url) else self.decoders
        return await self.image_of(lambda: image_bytes(url, self.limits), threads)

    async def image_of(self, content: Callable[[], bytes], threads: CapacityLimiter) -> np.ndarray:
        """The image of a file that is got in one of `threads`. QueueFullError before work that would be in vain."""
        self.batcher.check_room()
        found = await to_thread.run_sync(content, limiter=threads)

        def read() -> np.ndarray:
            return image_of_bytes(found, "the image", self.max_pixels)

        return await to_thread.run_sync(read, limiter=self.decoders)

    def check_model(self, name: str | None) -> None:
        """404 for a model that is not served."""
        if name is not None and name != self.name:
            raise HTTPException(404, f"the model {name!r} is not served here; this server has {self.name!r}")

    async def answer(self, job: Job, request: Request) -> Any:
        """A job's answer; the job is withdrawn when its client goes."""
        self.batcher.submit(job)
        return await self.unless_gone(asyncio.wrap_future(job.answer), job, request)

    async def unless_gone(
        self, wanted: asyncio.Future[T] | Coroutine[Any, Any, T], job: Job, request: Request
    ) -> T:
        """Waits for `wanted`, or until the client goes."""
        task = asyncio.ensure_future(wanted)
        watch = asyncio.ensure_future(gone(request))
        try:
            await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:  # the server does not wait any longer
            job.withdraw()
            raise
        finally:
            watch.cancel()
        if not task.done():
            job.withdraw()
            task.cancel()
            raise GoneError
        return task.result()

    def segment_job(self, body: SegmentRequest, image: np.ndarray) -> SegmentJob:
        """A class query; UserError for one that would not fit into memory."""
        names = split_names(body.classes) if isinstance(body.classes, str) else unique_names(body.classes)
        classes = tuple(names)
        threshold = self.asking.presence_threshold if body.threshold is None else body.threshold
        job = SegmentJob(image=image, classes=classes, threshold=threshold)
        job.check_size()
        return job

    def chat_job(self, body: ChatRequest, image: np.ndarray, conversation: Conversation) -> ChatJob:
        """A question in words; what the request leaves open is as the server's flags say."""
        sampling = body.sampling_over(self.asking.sampling)
        return ChatJob(
            image=image,
            conversation=conversation,
            max_new_tokens=min(body.num_tokens or self.asking.max_new_tokens, self.asking.max_new_tokens),
            sampling=sampling,
        )

    async def chat_result(
        self, job: ChatJob, found: ChatAnswer, wanted: Wanted
    ) -> tuple[Answer, list[MaskJson], dict[str, int]]:
        """A finished answer, its masks and its tokens."""
        processor = self.model.processor
        said = processor.said(found.token_ids)
        answer = answer_in_words(found, job.conversation, said, is_ended(found, processor))
        usage = usage_of(job.num_prompt, len(found.token_ids))
        self.counts.tokens.labels("prompt").inc(job.num_prompt)
        self.counts.tokens.labels("answer").inc(len(found.token_ids))
        return answer, await run_in_threadpool(masks_json, answer, wanted), usage


async def gone(request: Request) -> None:
    """Returns when the client has closed the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def masks_json(answer: Answer, wanted: Wanted) -> list[MaskJson]:
    """The masks of an answer as a request wants them."""
    found = answer.found(instances=wanted.instances, min_area=wanted.min_area)
    return [mask_json(mask, polygons=wanted.polygons) for mask in found]
