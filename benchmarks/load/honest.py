"""Clients that want answers: in words, in parts, about classes, several requests at once on one connection."""

from __future__ import annotations

import base64
import io
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Event
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.load.wire import Line, LostError, Reply, Tally, post, request

HONEST = "honest"
NUM_IMAGES = 24  # more than the server keeps encoded
CHAT, SEGMENT = "/v1/chat/completions", "/v1/segment"
WAIT = 0.3  # seconds after status 429, of honest clients in a hurry
CLASSES = (
    "red circle",
    "blue square",
    "green triangle",
    "sky",
    "tree",
    "dog",
    "cat",
    "car",
    "person",
    "road",
)


@dataclass
class Target:
    """A server, and what it answers when it is alone."""

    port: int
    model: str
    images: list[str]  # data URLs; each image has a size of its own
    sizes: list[list[int]]
    expected: list[str] = field(default_factory=list)  # the answer in words about each image

    @classmethod
    def of(cls, port: int, model: str) -> Target:
        """Asks about each image once, one after the other."""
        images = [picture(number) for number in range(NUM_IMAGES)]
        sizes = [[one.height, one.width] for one in images]
        target = cls(port, model, [data_url(image) for image in images], sizes)
        with Line(port) as line:
            for number in range(NUM_IMAGES):
                line.send(post(CHAT, target.question(number)))
                target.expected.append(text_of(line.read()))
        return target

    def question(self, number: int, **more: Any) -> dict[str, Any]:
        """A question in words about an image."""
        parts = [
            {"type": "text", "text": "Can you segment the red circle in this image?"},
            {"type": "image_url", "image_url": {"url": self.images[number]}},
        ]
        message = {"role": "user", "content": parts}
        return {"model": self.model, "messages": [message], "max_tokens": 24, **more}

    def query(self, number: int, names: list[str], **more: Any) -> dict[str, Any]:
        """A class query about an image."""
        return {"image": self.images[number], "classes": names, **more}


def picture(number: int) -> Image.Image:
    """An image of its own size."""
    rng = np.random.default_rng(number)
    pixels = np.full((60 + number, 90, 3), rng.integers(0, 256, 3), dtype=np.uint8)
    pixels[10:40, 10 + number : 40 + number] = rng.integers(0, 256, 3)
    return Image.fromarray(pixels)


def data_url(image: Image.Image, kind: str = "PNG") -> str:
    file = io.BytesIO()
    image.save(file, kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def text_of(reply: Reply) -> str:
    if reply.status != 200:
        raise LostError(f"status {reply.status}: {reply.body[:200]!r}")
    text: str = reply.json()["choices"][0]["message"]["content"]
    return text


class Honest:
    """One client: it asks again when it is told to wait, and knows what it has to be answered."""

    def __init__(self, target: Target, tally: Tally, stop: Event, seed: int) -> None:
        self.target, self.tally, self.stop = target, tally, stop
        self.rng = np.random.default_rng(seed)
        self.line: Line | None = None
        self.slowest = 0.0

    def run(self) -> None:
        """Asks until the end."""
        deeds: tuple[Callable[[], str], ...] = (self.chat, self.stream, self.segment, self.several)
        while True:
            deed = deeds[int(self.rng.integers(len(deeds)))]
            begin = time.monotonic()
            try:
                wrong = deed()
                self.tally.add(HONEST, "wrong" if wrong else "right", wrong)
            except (LostError, OSError, ValueError) as problem:
                self.hang_up()
                self.tally.add(HONEST, "lost", f"{deed.__name__}: {type(problem).__name__} {problem}")
            self.slowest = max(self.slowest, time.monotonic() - begin)
            if self.stop.is_set():
                break
        self.hang_up()

    def hang_up(self) -> None:
        if self.line is not None:
            self.line.close()
        self.line = None

    def ask(self, content: bytes, read: Callable[[Line], Reply] = Line.read) -> Reply:
        """The answer to one request, on the connection of the last one if that is still open."""
        while True:
            is_old = self.line is not None
            line = self.line = self.line or Line(self.target.port)
            try:
                line.send(content)
                reply = read(line)
            except (LostError, ConnectionError):
                if not is_old:
                    raise
                self.hang_up()  # closed by the server before the request came, as every client has to expect
                continue
            if reply.status != 429:
                return reply
            self.tally.add(HONEST, "told to wait")
            self.hang_up()
            time.sleep(WAIT)

    def number(self) -> int:
        return int(self.rng.integers(NUM_IMAGES))

    def chat(self) -> str:
        """A question in words; "" if the answer is as it should be, else what is wrong."""
        number = self.number()
        found = text_of(self.ask(post(CHAT, self.target.question(number))))
        expected = self.target.expected[number]
        return "" if found == expected else f"{found!r}, alone {expected!r}"

    def stream(self) -> str:
        number = self.number()
        reply = self.ask(post(CHAT, self.target.question(number, stream=True)))
        if reply.status != 200:
            raise LostError(f"status {reply.status}: {reply.body[:200]!r}")
        events = [row.removeprefix("data: ") for row in reply.body.decode().split("\n\n") if row]
        if not events or events[-1] != "[DONE]":
            raise LostError("a stream without its end")
        deltas = [json.loads(row)["choices"][0]["delta"] for row in events[:-1]]
        found, expected = "".join(delta.get("content", "") for delta in deltas), self.target.expected[number]
        return "" if found == expected else f"streamed {found!r}, alone {expected!r}"

    def segment(self) -> str:
        number, names = self.number(), self.names()
        return self.wrong_classes(self.ask(post(SEGMENT, self.target.query(number, names))), number, names)

    def several(self) -> str:
        """Four requests sent at once; the answers come in their order."""
        number, names, label = self.number(), self.names(), f"nobody-{int(self.rng.integers(10**9))}"
        content = (
            request("GET", f"/v1/models/{label}")
            + post(SEGMENT, self.target.query(number, names))
            + request("GET", "/health")
            + post(CHAT, self.target.question(number))
        )
        while True:
            with Line(self.target.port) as line:
                line.send(content)
                replies: list[Reply] = []
                for _ in range(4):
                    replies.append(line.read())
                    if replies[-1].status == 429:  # the server closes the connection behind it
                        break
            if replies[-1].status != 429:
                break
            self.tally.add(HONEST, "told to wait")
            time.sleep(WAIT)
        missing, classes, health, words = replies
        if missing.status != 404 or label not in missing.body.decode():
            return f"out of order: {missing.body[:100]!r}"
        if health.json().get("status") != "ok":
            return f"out of order: {health.body[:100]!r}"
        if (found := text_of(words)) != self.target.expected[number]:
            return f"{found!r}, alone {self.target.expected[number]!r}"
        return self.wrong_classes(classes, number, names)

    def names(self) -> list[str]:
        count = int(self.rng.integers(1, len(CLASSES)))
        return [str(name) for name in self.rng.permutation(CLASSES)[:count]]

    def wrong_classes(self, reply: Reply, number: int, names: list[str]) -> str:
        if reply.status != 200:
            raise LostError(f"status {reply.status}: {reply.body[:200]!r}")
        answer = reply.json()
        size = [answer["image"]["height"], answer["image"]["width"]]
        if answer["asked"] != names or size != self.target.sizes[number]:
            return f"asked {names} of {self.target.sizes[number]}, told of {answer['asked']}, {size}"
        return ""
