"""One thread owns the model; requests that wait are answered together, in batches.

A batch is what waits when the one before is finished, so an idle server answers at once, and a busy one in batches as
large as its load.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence

import numpy as np

from model.errors import UserError
from model.generation.streaming import TextStream
from model.lasagna import LasagnaForConditionalGeneration
from model.outputs import ChatAnswer, EncodedImage, Segmentation
from utils.serving.jobs import MAX_MASK_PIXELS, ChatJob, Job, SegmentJob, ThresholdJob

logger = logging.getLogger(__name__)

GATHERING = 0.005  # seconds that an idle server waits for requests that arrive together
MAX_IMAGES = 16  # encoded images that are kept, for questions that follow


class QueueFullError(UserError):
    """As many requests wait as may."""


class StoppingError(UserError):
    """The server ends."""


class Batcher:
    """Answers jobs with one model, in a thread of its own.

    Args:
        max_batch: jobs of one batch.
        max_waiting: jobs that wait; more are refused.
        classes_per_query: as for `segment_batch`.
        on_batch: called with the size and the seconds of each batch.
    """

    def __init__(
        self,
        model: LasagnaForConditionalGeneration,
        *,
        max_batch: int,
        max_waiting: int,
        classes_per_query: int | None = None,
        on_batch: Callable[[int, float], object] = lambda size, seconds: None,
    ) -> None:
        self.model = model
        self.max_batch = max_batch
        self.max_waiting = max_waiting
        self.classes_per_query = classes_per_query
        self.on_batch = on_batch
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._is_closed = False
        self._images: OrderedDict[bytes, EncodedImage] = OrderedDict()
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)
        self._thread.start()

    @property
    def num_waiting(self) -> int:
        """Jobs that no batch has taken yet, and that somebody waits for."""
        with self._changed:
            return sum(not job.is_gone.is_set() for job in self._waiting)

    def check_room(self) -> None:
        """Whether a job could be queued now; errors as in `submit`."""
        with self._changed:
            if self._is_closed:
                raise StoppingError("the server is stopping; ask again when it is back")
            if len(self._waiting) >= self.max_waiting:
                self._drop_gone()
            if len(self._waiting) >= self.max_waiting:
                raise QueueFullError(f"{self.max_waiting} requests wait already; ask again later")

    def submit(self, job: Job) -> None:
        """Queue a job; its `answer` is set later.

        Raises:
            QueueFullError: too many wait.
            StoppingError: the server ends.
        """
        with self._changed:
            self.check_room()
            self._waiting.append(job)
            self._changed.notify()

    def close(self) -> None:
        """End after the current batch; what still waits is refused."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while batch := self._next_batch():
            begin = time.monotonic()
            self._answer(batch)
            self.on_batch(len(batch), time.monotonic() - begin)
            del batch  # an idle server would keep its last answers, of up to 6 GB
        for job in self._waiting:
            settle(job, StoppingError("the server is stopping; ask again when it is back"))

    def _next_batch(self) -> list[Job]:
        """The first job and those behind it that can be answered with it; none when the server ends."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._waiting or self._is_closed)
                if not self._is_closed and len(self._waiting) < self.max_batch:
                    full = lambda: self._is_closed or len(self._waiting) >= self.max_batch  # noqa: E731
                    self._changed.wait_for(full, timeout=GATHERING)
                if self._is_closed:
                    return []
                self._drop_gone()
                if self._waiting:
                    break
            group, room = self._waiting[0].group, MAX_MASK_PIXELS
            batch: list[Job] = []
            others: deque[Job] = deque()
            while self._waiting:
                job = self._waiting.popleft()
                fits = job.group == group and len(batch) < self.max_batch and job.num_mask_pixels <= room
                if fits or not batch:
                    batch.append(job)
                    room -= job.num_mask_pixels
                else:
                    others.append(job)
            self._waiting = others
            return batch

    def _drop_gone(self) -> None:
        """Jobs for which nobody waits take no place."""
        self._waiting = deque(job for job in self._waiting if not job.is_gone.is_set())

    def _answer(self, batch: Sequence[Job]) -> None:
        """Set the answers of a batch. What makes a batch fail must not make its neighbours fail."""
        jobs = [job for job in batch if not job.is_gone.is_set()]
        if not jobs:
            return
        try:
            answers = self._ask(jobs)
        except Exception as problem:
            if len(jobs) == 1:
                if not isinstance(problem, UserError):
                    logger.exception("a request failed")
                settle(jobs[0], problem)
                return
            for job in jobs:
                if isinstance(job, ChatJob) and job.has_begun:
                    settle(job, problem)
                else:
                    self._answer([job])
            return
        for job, answer in zip(jobs, answers, strict=True):
            settle(job, answer)

    def _ask(self, jobs: Sequence[Job]) -> Sequence[ChatAnswer | Segmentation]:
        images, image_of_job = self._encoded([job.image for job in jobs])
        if isinstance(jobs[0], SegmentJob):
            queries = [job for job in jobs if isinstance(job, SegmentJob)]
            return self.model.segment_batch(
                [images[index] for index in image_of_job],
                [job.classes for job in queries],
                presence_threshold=queries[0].threshold,
                classes_per_query=self.classes_per_query,
            )
        if isinstance(jobs[0], ThresholdJob):
            return [
                self.model.rethreshold(job.found, images[index], job.threshold)
                for job, index in zip(jobs, image_of_job, strict=True)
                if isinstance(job, ThresholdJob)
            ]
        chats = [job for job in jobs if isinstance(job, ChatJob)]
        streams = [TextStream(self.model.processor) for _ in chats]
        counts, masks = [0] * len(chats), [0] * len(chats)
        seg = self.model.processor.token_ids.seg
        for job, index in zip(chats, image_of_job, strict=True):
            row = self.model.processor.encode(job.conversation).with_image(images[index].placeholder)
            job.num_prompt = len(row.input_ids)

        def on_token(row: int, token: int) -> bool:
            job = chats[row]
            counts[row] += 1
            masks[row] += token == seg
            if job.on_text is not None and (new := streams[row].add(token)):
                job.has_begun = True
                job.on_text(new)
            is_full = (masks[row] + 1) * job.num_pixels * len(chats) > MAX_MASK_PIXELS
            return job.is_gone.is_set() or counts[row] >= job.max_new_tokens or (token == seg and is_full)

        answers = self.model.generate_batch(
            images,
            [job.conversation for job in chats],
            image_of_row=image_of_job,
            max_new_tokens=max(job.max_new_tokens for job in chats),
            samplings=[job.sampling for job in chats],
            on_token=on_token,
        )
        for job, stream, answer in zip(chats, streams, answers, strict=True):
            if job.on_text is not None and (rest := stream.rest(answer.text)):
                job.on_text(rest)
        return answers

    def _encoded(self, images: Sequence[np.ndarray]) -> tuple[list[EncodedImage], list[int]]:
        """The images, each once, as both encoders see them, and for each of `images` which one it is.

        Recent ones are known already.
        """
        keys = [key_of(image) for image in images]
        new = {key: image for key, image in zip(keys, images, strict=True) if key not in self._images}
        encoded = dict(zip(new, self.model.encode_batch(list(new.values())), strict=True)) if new else {}
        found = {key: encoded[key] if key in encoded else self._images[key] for key in keys}
        for key, image in found.items():
            self._images[key] = image
            self._images.move_to_end(key)
        while len(self._images) > MAX_IMAGES:
            self._images.popitem(last=False)
        order = list(found)
        return list(found.values()), [order.index(key) for key in keys]


def key_of(image: np.ndarray) -> bytes:
    """The same for equal images only."""
    code = hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16)
    code.update(repr(image.shape).encode())
    return code.digest()


def settle(job: Job, result: object) -> None:
    """Set a job's answer or what went wrong, unless nobody waits for it."""
    if job.answer.done() or not job.answer.set_running_or_notify_cancel():
        return
    if isinstance(result, BaseException):
        job.answer.set_exception(result)
    else:
        job.answer.set_result(result)
