"""What a request has to pass before the server reads it: key, size, patience; and what is counted of it."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import json
import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from utils.serving.dialect import error_body

OPEN = ("/health",)  # answered without a key
BODY_SECONDS = 30.0  # for the whole body of a request
MAX_DISCARDED = 10  # times the largest body: more is not even thrown away
MAX_HELD = 25  # times the largest body: what all requests that are read or answered may hold together
CLIENT_GONE = 499  # as nginx counts it
RETRY_SECONDS = 2
NOT_BEGUN = 500  # status of an answer that never comes
MAX_HEAD = 65_536  # bytes of a request's head


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
        self.open = Gauge("lasagna_open", "requests that are read or answered now", registry=self.registry)
        self.held = Gauge("lasagna_held_bytes", "bodies of these requests", registry=self.registry)

    def count_batch(self, size: int, seconds: float) -> None:
        """One batch of the model."""
        self.batches.observe(size)
        self.batch_seconds.observe(seconds)


class Gate:
    """ASGI middleware: 401 without the key, 413 for a body that is too large, 408 for one that does not come.

    429 where all bodies together would take too much memory.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        api_key: str,
        max_bytes: int,
        counts: Counts,
        paths: frozenset[str],
        hosts: frozenset[str] | None,
        is_for_browsers: bool = False,
    ) -> None:
        self.app = app
        self.api_key = api_key
        self.max_bytes = max_bytes
        self.counts = counts
        self.paths = paths  # others are counted as one
        self.hosts = hosts  # names under which the server may be asked; None: any
        self.num_held = 0  # bytes of bodies
        self.is_for_browsers = is_for_browsers  # which are told to ask for the key, as a password

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"] if scope["path"] in self.paths else "other"
        begin, status = time.monotonic(), NOT_BEGUN
        body = Body(self, scope)

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        self.counts.open.inc()
        try:
            if refused := self._refused(scope):
                await respond(counted, *refused, self._password_wanted(refused[0]))
                return
            try:
                content = await asyncio.wait_for(body.read(receive), BODY_SECONDS)
            except RefusedBodyError as problem:
                await respond(counted, problem.status, str(problem))
                return
            except TimeoutError:
                await respond(
                    counted, 408, f"the request did not arrive within {BODY_SECONDS:g} seconds; send it again"
                )
                return
            if content is None:
                status = CLIENT_GONE
                return
            await self.app(scope, replayed(content, receive), counted)
        except asyncio.CancelledError:  # the patience of a server that stops is at its end
            if status == NOT_BEGUN:
                await respond(send, 503, "the server is stopping; ask again when it is back")
                status = 503
        finally:
            body.release()
            self.counts.open.dec()
            self.counts.requests.labels(path, str(status)).inc()
            self.counts.seconds.labels(path).observe(time.monotonic() - begin)

    def _refused(self, scope: Scope) -> tuple[int, str] | None:
        size = sum(len(name) + len(value) + 4 for name, value in scope["headers"])  # ": " and the line's end
        if size + len(scope["raw_path"]) + len(scope["query_string"]) > MAX_HEAD:
            return 431, f"the head of the request has more than {MAX_HEAD:,} bytes; send data in its body"
        headers = {name.lower(): value for name, value in scope["headers"]}
        if self.hosts is not None and host_of(headers.get(b"host", b"")) not in self.hosts:
            return 403, "this server answers under the names of this machine only; set --api_key for others"
        given = headers.get(b"authorization", b"")
        if self.api_key and scope["path"] not in OPEN and not brings_key(given, self.api_key):
            return 401, "the key is missing or wrong; send the header Authorization: Bearer KEY"
        return None

    def _password_wanted(self, status: int) -> list[tuple[bytes, bytes]]:
        """The header that makes a browser ask for the key."""
        return (
            [(b"www-authenticate", b'Basic realm="LaSagnA"')]
            if status == 401 and self.is_for_browsers
            else []
        )


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


class RefusedBodyError(Exception):
    """A body that is not read, or not to its end."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Body:
    """The body of a request while it is read and answered."""

    def __init__(self, gate: Gate, scope: Scope) -> None:
        self.gate, self.size = gate, 0
        headers = {name.lower(): value for name, value in scope["headers"]}
        stated = headers.get(b"content-length", b"")
        self.stated = int(stated) if stated.isdigit() else 0  # h11 refuses what is no number
        self.can_wait = headers.get(b"expect", b"").lower() == b"100-continue"

    async def read(self, receive: Receive) -> bytes | None:
        """The whole body; None if the client goes before its end.

        One that is too large is read to its end as well, though not kept: who still sends does not read the answer.
        There is an end to that too; and who says beforehand how much will come, and waits, is told at once.

        Raises:
            RefusedBodyError: it is too large, or those of all requests are.
        """
        most = self.gate.max_bytes
        if self.stated > (1 if self.can_wait else MAX_DISCARDED) * most:
            raise self._too_large()
        parts: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            part = message.get("body", b"")
            size += len(part)
            is_last = not message.get("more_body", False)
            if size > most:
                parts.clear()
                self.release()
                if is_last or size > MAX_DISCARDED * most:
                    raise self._too_large()
                continue
            parts.append(part)
            self._hold(len(part))
            if is_last:
                return b"".join(parts)

    def release(self) -> None:
        """It is no longer in memory."""
        self.gate.num_held -= self.size
        self.size = 0
        self.gate.counts.held.set(self.gate.num_held)

    def _hold(self, size: int) -> None:
        most = MAX_HELD * self.gate.max_bytes
        if self.gate.num_held + size > most:
            raise RefusedBodyError(429, f"requests of {most:,} bytes are answered already; ask again later")
        self.gate.num_held += size
        self.size += size
        self.gate.counts.held.set(self.gate.num_held)

    def _too_large(self) -> RefusedBodyError:
        return RefusedBodyError(
            413, f"the request has more than {self.gate.max_bytes:,} bytes; shrink the image"
        )


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


async def respond(send: Send, status: int, message: str, headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
    """An error as JSON."""
    body = json.dumps(error_body(message, status)).encode()
    fields: list[tuple[bytes, bytes]] = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        *headers,
    ]
    if status in (408, 413, 429):  # the rest of the body is not read
        fields.append((b"connection", b"close"))
    if status == 429:
        fields.append((b"retry-after", str(RETRY_SECONDS).encode()))
    start: dict[str, Any] = {"type": "http.response.start", "status": status, "headers": fields}
    await send(start)
    await send({"type": "http.response.body", "body": body})
