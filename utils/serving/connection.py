"""Connections of the server: uvicorn's, with an end to the patience with clients that send or read too slowly.

uvicorn closes a connection on which nothing comes after an answer. It waits without end for the rest of a request's
head, and for a client that does not read its answer; each would keep a file handle, and the answer in memory.
"""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from utils.common.processes import end_now
from utils.common.stopping import handled
from utils.serving.dialect import error_body

logger = logging.getLogger(__name__)

HEAD_SECONDS = 15.0  # for the head of a request, from the connection or the answer before
UNREAD_SECONDS = (
    30.0  # in which a client reads what fills the buffer of its answer (48 KiB), or the rest of it
)
MAX_CONNECTIONS = 500  # file handles: most systems give a process 1,024
LOOK_SECONDS = 0.5  # between two looks at a connection
GRACE_SECONDS = 10  # for answers under way when the server is stopped


class Connection(H11Protocol):
    """One connection; h11 limits the size of a request's head that comes in pieces, the gate that of any other."""

    _look: asyncio.TimerHandle | None = None
    _answered: float = 0.0  # when the last answer was complete, or the connection began
    _unread_since: float | None = None  # the buffer of the answer is full
    _closing_since: float | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._answered = self.loop.time()
        self._look = self.loop.call_later(LOOK_SECONDS, self._look_after)
        if len(self.connections) > MAX_CONNECTIONS:
            transport.write(busy())
            transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._look is not None:
            self._look.cancel()

    def on_response_complete(self) -> None:
        self._answered = self.loop.time()
        super().on_response_complete()

    def pause_writing(self) -> None:
        self._unread_since = self.loop.time()
        super().pause_writing()

    def resume_writing(self) -> None:
        self._unread_since = None
        super().resume_writing()

    def _look_after(self) -> None:
        now = self.loop.time()
        self._look = self.loop.call_later(LOOK_SECONDS, self._look_after)
        if self.transport.is_closing():
            self._closing_since = self._closing_since or now
        # A body behind an answer that did not wait for it is no head: it counts as silence.
        is_waiting = self.cycle is None or self.cycle.response_complete
        waits_since = self._answered if is_waiting else None
        if is_over(waits_since, HEAD_SECONDS, now) and not self.transport.get_write_buffer_size():
            self.transport.close()
        elif any(
            is_over(since, UNREAD_SECONDS, now)
            for since in (waits_since, self._unread_since, self._closing_since)
        ):
            # Else the system would keep what was not read, and try for minutes to send it.
            end = struct.pack("ii", 1, 0)
            self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, end)
            self.transport.abort()


class Server(uvicorn.Server):
    """uvicorn's, which ends in order at the first signal, and at once at the second.

    uvicorn would end by the signal itself, after an orderly end too, and wait for running answers at every SIGTERM.
    """

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        with super().capture_signals(), handled((signal.SIGHUP,), self.handle_exit):
            yield

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            self.leave()
            end_now(128 + sig)
        logger.info("stopping: running answers have %d seconds; a second signal ends them", GRACE_SECONDS)
        self.should_exit = True

    def leave(self) -> None:
        """What has to be done before the process ends."""


def server_of(app: ASGIApp, kind: type[Server] = Server) -> Server:
    """uvicorn with these connections."""
    settings = uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        log_config=None,  # uvicorn's own would close the handlers of everybody else
        log_level="warning",
        server_header=False,
        timeout_graceful_shutdown=GRACE_SECONDS,
        lifespan="on",
    )
    return kind(settings)


def is_over(since: float | None, seconds: float, now: float) -> bool:
    """Whether something has lasted longer than `seconds`."""
    return since is not None and now - since > seconds


def busy() -> bytes:
    """The answer to a connection too many."""
    body = json.dumps(error_body(f"{MAX_CONNECTIONS} connections are open; ask again later", 503)).encode()
    head = (
        "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 2\r\n"
        f"Connection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body
