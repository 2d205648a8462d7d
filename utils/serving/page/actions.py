"""What the buttons of the page do, without gradio: each gives what is shown from then on."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass

from model.errors import UserError
from utils.common.commands import one_line
from utils.data.images import image_of_bytes
from utils.serving.answers import Answer, Asking, OnText, split_names
from utils.serving.batching import Batcher
from utils.serving.page.view import Said, said_in, talk_html, view_html
from utils.serving.page.visits import NO_IMAGE, Visit, Visits

logger = logging.getLogger(__name__)

ARGMAX = 0.5  # the threshold that decides as the more probable choice does
MAX_LETTERS = 100_000  # of a question; it is shown again with every part of its answer
FAILED = "the server failed; its log has the reason"


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What changes on the page; None: this part stays."""

    talk: str  # HTML
    view: str | None = None  # HTML
    threshold: float | None = None  # of the slider
    can_decide: bool | None = None  # whether there is a slider


class Actions:
    """The actions of all visitors, who are told apart by the name that the browser gives its session."""

    def __init__(self, asking: Asking, batcher: Batcher, *, max_pixels: int) -> None:
        self.visits = Visits(batcher.model, asking, batcher)
        self.batcher, self.max_pixels = batcher, max_pixels
        # As many may be answered or wait as the queue holds; it refuses the next one.
        self.threads = ThreadPoolExecutor(batcher.max_waiting + batcher.max_batch + 1, "page")

    def open(self, visitor: str, content: bytes, name: str) -> Shown:
        """An image that was uploaded or chosen; `name`: of its file."""
        visit = self.visits.of(visitor)
        try:
            image = image_of_bytes(content, name, self.max_pixels)
        except UserError as problem:
            return now(visit, problem=one_line(problem))
        visit.session.stop()
        with visit.busy:  # the question that was just stopped is over in a moment
            visit.session.open(image)
            visit.name = name
        return self._changed(visit)

    def restart(self, visitor: str) -> Shown:
        """Begins the conversation anew, about the same image."""
        visit = self.visits.of(visitor)
        visit.session.stop()
        with visit.busy:
            visit.session.forget()
        return self._changed(visit)

    def stop(self, visitor: str) -> None:
        """Stops the answer under way, which is then no part of the conversation."""
        self.visits.of(visitor).session.stop()

    def leave(self, visitor: str) -> None:
        """Forgets a visitor who closed the page."""
        self.visits.leave(visitor)

    async def ask(self, visitor: str, question: str) -> AsyncIterator[Shown]:
        """A question in words, whose answer comes in parts."""
        visit, text = self.visits.of(visitor), question.strip()
        if not text or len(text) > MAX_LETTERS:
            yield now(visit, problem=too_long(text) if text else "the question is empty; type one")
            return
        async for shown in self._answer(visit, text, lambda tell: visit.session.ask(text, tell)):
            yield shown

    async def segment(self, visitor: str, names: str) -> AsyncIterator[Shown]:
        """Which of these classes are in the image; names with commas stand in double quotes."""
        visit = self.visits.of(visitor)
        try:
            if len(names) > MAX_LETTERS:
                raise UserError(too_long(names))
            classes = split_names(names)
        except UserError as problem:
            yield now(visit, problem=one_line(problem))
            return
        asked = ", ".join(classes)
        async for shown in self._answer(visit, asked, lambda _: visit.session.segment(classes)):
            yield shown

    def decide(self, visitor: str, threshold: float) -> Shown:
        """Another threshold: the last class query is decided again from its probabilities."""
        visit = self.visits.of(visitor)
        if not visit.busy.acquire(blocking=False):
            return Shown(talk=talk_html(said_in(visit), problem="an answer is under way; wait for it"))
        try:
            visit.session.set_threshold(threshold)
        except UserError as problem:
            return now(visit, problem=one_line(problem))
        except CancelledError:
            return now(visit, status="stopped")
        finally:
            visit.busy.release()
        visit.number += 1
        return Shown(talk=talk_html(said_in(visit)), view=view_html(visit))

    async def _answer(
        self, visit: Visit, question: str, ask: Callable[[OnText], Answer]
    ) -> AsyncIterator[Shown]:
        """Shows a question, its answer as it comes, and what it came to."""
        if visit.session.image is None:
            yield now(visit, problem=NO_IMAGE)
            return
        loop = asyncio.get_running_loop()
        news: asyncio.Queue[str | None] = asyncio.Queue()  # parts of the text; None: the answer is there

        def tell(part: str | None) -> None:  # called by other threads
            loop.call_soon_threadsafe(news.put_nowait, part)

        def work() -> Answer:
            if not visit.busy.acquire(blocking=False):
                raise UserError("an answer is under way; wait for it, or stop it")
            try:
                return ask(tell)
            finally:
                visit.busy.release()

        num_before = self.batcher.num_waiting
        result = self.threads.submit(work)
        result.add_done_callback(lambda _: tell(None))
        said = said_in(visit)
        status = f"{num_before} before this one ..." if num_before else "..."
        text = ""
        try:
            yield Shown(talk=talk_html(said, under_way=Said(question=question), status=status))
            while (part := await news.get()) is not None:
                text += part
                while not news.empty():  # what came in the meantime is shown together
                    part = news.get_nowait()
                    if part is None:
                        break
                    text += part
                if part is None:
                    break
                yield Shown(talk=talk_html(said, under_way=Said(question=question, text=text)))
        finally:  # also when the visitor has gone
            if not result.done():
                visit.session.stop()
        try:
            result.result()
        except CancelledError:
            yield now(visit, status="stopped")
        except UserError as problem:
            yield now(visit, problem=one_line(problem))
        except Exception:
            logger.exception("a question of the page failed")
            yield now(visit, problem=FAILED)
        else:
            yield self._changed(visit)

    def _changed(self, visit: Visit) -> Shown:
        """Everything anew, after image or answer changed."""
        visit.number += 1
        self.visits.make_room()
        found = visit.answer.segmentation if visit.answer else None
        threshold = visit.session.asking.presence_threshold
        return Shown(
            talk=talk_html(said_in(visit)),
            view=view_html(visit),
            threshold=ARGMAX if threshold is None else threshold,
            can_decide=found is not None and found.states is not None,
        )


def now(visit: Visit, *, status: str = "", problem: str = "") -> Shown:
    """The conversation as it is, with something to say."""
    return Shown(talk=talk_html(said_in(visit), status=status, problem=problem))


def too_long(text: str) -> str:
    """For messages: that a question is too long to be shown."""
    return f"the question has {len(text):,} letters, of at most {MAX_LETTERS:,}; shorten it"
