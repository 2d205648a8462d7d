"""What a request has to pass before the server reads it: key, size, patience; and what is counted of it."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import json
import time
from typing import Any
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from utils.serving.dialect import error_body

OPEN = ("/health",)  # answered without a key
BODY_SECONDS = 30.0  # for the whole body of a request
MAX_DISCARDED = 10  # times the largest body: more is not even thrown away


class Counts:
    """What /metrics shows, in Prometheus' names."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "lasagna_requests", "requests by path and status", ["path", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "lasagna_request_seconds", "from request to answer", ["path"], registry=self.registry
        )
        self.batches = Histogram(
            "lasagna_batch_size",
            "requests answered together",
            buckets=(1, 2, 4, 8, 16, 32, 64),
            registry=self.registry,
        )
        self.batch_seconds = Histogram(
            "lasagna_batch_seconds", "the model's time for a batch", registry=self.registry
        )
        self.tokens = Counter("lasagna_tokens", "tokens read and generated", ["kind"], registry=self.registry)
        self.waiting = Gauge("lasagna_waiting", "requests that wait for a batch", registry=self.registry)

    def count_batch(self, size: int, seconds: float) -> None:
        """One batch of the model."""
        self.batches.observe(size)
        self.batch_seconds.observe(seconds)


class Gate:
    """ASGI middleware: 401 without the key, 413 for a body that is too large, 408 for one that does not come."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        api_key: str,
        max_bytes: int,
        counts: Counts,
        paths: frozenset[str],
        hosts: frozenset[str] | None,
    ) -> None:
        self.app = app
        self.api_key = api_key
        self.max_bytes = max_bytes
        self.counts = counts
        self.paths = paths  # others are counted as one
        self.hosts = hosts  # names under which the server may be asked; None: any

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"] if scope["path"] in self.paths else "other"
        begin, status = time.monotonic(), 500
        answered = False

        async def counted(message: Message) -> None:
            nonlocal status, answered
            if message["type"] == "http.response.start":
                status, answered = message["status"], True
            await send(message)

        try:
            if refused := self._refused(scope):
                await respond(counted, *refused)
                return
            try:
                body = await asyncio.wait_for(read_body(receive, self.max_bytes), BODY_SECONDS)
            except TooLargeError:
                await respond(
                    counted, 413, f"the request has more than {self.max_bytes:,} bytes; shrink the image"
                )
                return
            except TimeoutError:
                await respond(
                    counted, 408, f"the request did not arrive within {BODY_SECONDS:g} seconds; send it again"
                )
                return
            if body is None:  # the client has gone
                return
            await self.app(scope, replayed(body, receive), counted)
        finally:
            self.counts.requests.labels(path, str(status)).inc()
            self.counts.seconds.labels(path).observe(time.monotonic() - begin)

    def _refused(self, scope: Scope) -> tuple[int, str] | None:
        headers = {name.lower(): value for name, value in scope["headers"]}
        if self.hosts is not None and host_of(headers.get(b"host", b"")) not in self.hosts:
            return 403, "this server answers under the names of this machine only; set --api_key for others"
        given = headers.get(b"authorization", b"")
        if self.api_key and scope["path"] not in OPEN and not brings_key(given, self.api_key):
            return 401, "the key is missing or wrong; send the header Authorization: Bearer KEY"
        return None


def brings_key(header: bytes, key: str) -> bool:
    """Whether an Authorization header has the key: after Bearer or, as Label Studio sends it, as a password."""
    kind, _, given = header.partition(b" ")
    if kind == b"Basic":
        try:
            given = base64.b64decode(given, validate=True).partition(b":")[2]
        except binascii.Error:
            return False
    return kind in (b"Basic", b"Bearer") and hmac.compare_digest(given, key.encode())


def host_of(header: bytes) -> str:
    """The name in a Host header, without its port."""
    try:
        return urlsplit(f"//{header.decode('latin-1')}").hostname or ""
    except ValueError:
        return ""


class TooLargeError(Exception):
    """A body of more bytes than are read."""


async def read_body(receive: Receive, max_bytes: int) -> bytes | None:
    """The body of a request; None if the client goes before its end.

    One that is too large is read to its end as well, though not kept: who still sends does not read the answer. There
    is an end to that too.
    """
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        part = message.get("body", b"")
        size += len(part)
        is_last = not message.get("more_body", False)
        if size > max_bytes:
            parts.clear()
            if is_last or size > MAX_DISCARDED * max_bytes:
                raise TooLargeError
            continue
        parts.append(part)
        if is_last:
            return b"".join(parts)


def replayed(body: bytes, receive: Receive) -> Receive:
    """Gives a body that was read, then what comes behind it."""
    is_given = False

    async def again() -> Message:
        nonlocal is_given
        if is_given:
            return await receive()
        is_given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


async def respond(send: Send, status: int, message: str, headers: dict[str, str] | None = None) -> None:
    """An error as JSON."""
    body = json.dumps(error_body(message, status)).encode()
    fields: list[tuple[bytes, bytes]] = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        *((name.encode(), value.encode()) for name, value in (headers or {}).items()),
    ]
    if status in (408, 413):  # the rest of the body is not read
        fields.append((b"connection", b"close"))
    start: dict[str, Any] = {"type": "http.response.start", "status": status, "headers": fields}
    await send(start)
    await send({"type": "http.response.body", "body": body})
