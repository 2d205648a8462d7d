"""Who uses the page: one conversation for each visitor, answered by the queue that all requests share."""

from __future__ import annotations

import hmac
import secrets
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from model.errors import UserError
from model.lasagna import LasagnaForConditionalGeneration
from model.outputs import ChatAnswer, Segmentation
from model.text.conversation import Conversation, Turn
from utils.serving.answers import Answer, Asking, OnText, answer_in_words, answer_of, is_ended
from utils.serving.batching import Batcher
from utils.serving.jobs import ChatJob, Job, SegmentJob, ThresholdJob
from utils.serving.session import Session

NO_IMAGE = "no image is open, or it had to make room for those of others; open one, or take an example"
MAX_VISITS = 256
MAX_KEPT_BYTES = 2_000_000_000  # of the images and masks of all visitors


@dataclass(kw_only=True)
class QueuedSession(Session):
    """A conversation whose questions wait in the queue of the server.

    Only the last answer keeps its masks: for a conversation that goes on, the turns of those before are enough.
    """

    batcher: Batcher
    under_way: Job | None = None

    def open(self, image: np.ndarray) -> None:
        """Turns to another (height, width, 3) uint8 image; it is encoded with the first question."""
        self.image = image
        self.forget()

    def stop(self) -> None:
        """Withdraw the question under way: whoever waits for its answer gets a CancelledError."""
        if (job := self.under_way) is not None:
            job.withdraw()

    @property
    def num_bytes(self) -> int:
        """What the image and the masks of the last answer take."""
        masks = self.answers[-1].masks if self.answers else torch.empty(0)
        return (0 if self.image is None else self.image.nbytes) + masks.nbytes

    def _in_words(self, prompt: str, asking: Asking, on_text: OnText | None) -> Answer:
        conversation = Conversation((*self.history, Turn("user", (prompt,))))
        job = ChatJob(
            image=self._image(),
            conversation=conversation,
            max_new_tokens=asking.max_new_tokens,
            sampling=asking.sampling,
            on_text=on_text,
        )
        found: ChatAnswer = self._answer(job)
        processor = self.model.processor
        return answer_in_words(
            found, conversation, processor.said(found.token_ids), is_ended(found, processor)
        )

    def _about_classes(self, names: Sequence[str]) -> Answer:
        threshold = self.asking.presence_threshold
        job = SegmentJob(image=self._image(), classes=tuple(names), threshold=threshold)
        job.check_size()
        return answer_of(self._answer(job), self.model.processor.format, self.asking.limit(self.model))

    def _decide_again(self, found: Segmentation, threshold: float | None) -> Segmentation:
        again: Segmentation = self._answer(
            ThresholdJob(image=self._image(), found=found, threshold=threshold)
        )
        return again

    def _image(self) -> np.ndarray:
        if self.image is None:
            raise UserError(NO_IMAGE)
        return self.image

    def _answer(self, job: Job) -> Any:
        self.under_way = job
        try:
            self.batcher.submit(job)
            return job.answer.result()
        finally:
            self.under_way = None

    def _keep(self, answer: Answer) -> Answer:
        if self.answers:
            self.answers[-1] = without_masks(self.answers[-1])
        return super()._keep(answer)


def without_masks(answer: Answer) -> Answer:
    """What was said, for later questions."""
    return replace(answer, masks=torch.empty(0, *answer.masks.shape[1:]), segmentation=None)


@dataclass(kw_only=True, eq=False)
class Visit:
    """One visitor, whose image and results are found under a key that nobody else knows."""

    session: QueuedSession
    key: str = field(default_factory=lambda: secrets.token_urlsafe(24))
    number: int = 0  # goes up whenever image or answer change, so that a browser keeps nothing old
    name: str = ""  # of the image's file
    busy: threading.Lock = field(default_factory=threading.Lock)  # held while a question is answered

    @property
    def answer(self) -> Answer | None:
        """The last answer about the image."""
        return self.session.answers[-1] if self.session.answers else None

    @property
    def place(self) -> str:
        """Where its files are, relative to the page."""
        return f"results/{self.key}/{self.number}"


class Visits:
    """The visitors; those who came last longest ago are forgotten when there are too many, or too many pixels."""

    def __init__(self, model: LasagnaForConditionalGeneration, asking: Asking, batcher: Batcher) -> None:
        self.model, self.asking, self.batcher = model, asking, batcher
        self._visits: OrderedDict[str, Visit] = OrderedDict()  # by the browser's own name of its session
        self._lock = threading.Lock()

    def of(self, name: str) -> Visit:
        """The visit of a browser's session; a new one if it is not known, or not any more."""
        with self._lock:
            if name not in self._visits:
                session = QueuedSession(model=self.model, asking=self.asking, batcher=self.batcher)
                self._visits[name] = Visit(session=session)
            self._visits.move_to_end(name)
            self._shrink()
            return self._visits[name]

    def find(self, key: str, number: int) -> Visit | None:
        """The visit with this key, if `number` is what it shows now."""
        with self._lock:
            for visit in self._visits.values():
                if hmac.compare_digest(visit.key.encode(), key.encode(errors="replace")):
                    return visit if visit.number == number else None
            return None

    def make_room(self) -> None:
        """Forget those who came longest ago, until what is left is small enough; never the last one."""
        with self._lock:
            self._shrink()

    def leave(self, name: str) -> None:
        """A browser has closed the page: nobody waits for its answer any more."""
        with self._lock:
            visit = self._visits.pop(name, None)
        if visit is not None:
            visit.session.stop()

    def _shrink(self) -> None:
        kept = sum(visit.session.num_bytes for visit in self._visits.values())
        while len(self._visits) > 1 and (len(self._visits) > MAX_VISITS or kept > MAX_KEPT_BYTES):
            _, visit = self._visits.popitem(last=False)
            kept -= visit.session.num_bytes
            visit.session.stop()
