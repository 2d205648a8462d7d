"""HTTP as bytes on a socket: what honest clients, and above all others, send and read."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, BinaryIO

PATIENCE = 120.0  # seconds that an honest client waits for an answer


class LostError(Exception):
    """A connection ended before its answer did."""


@dataclass
class Tally:
    """What came of the requests, by kind of client; of several threads."""

    counts: dict[str, Counter[str]] = field(default_factory=dict)
    details: list[str] = field(default_factory=list)
    lock: Lock = field(default_factory=Lock)

    def add(self, kind: str, outcome: str, detail: str = "") -> None:
        """One more; `detail`: of what should not be."""
        with self.lock:
            self.counts.setdefault(kind, Counter())[outcome] += 1
            if detail and len(self.details) < 50:
                self.details.append(f"{kind}, {outcome}: {detail[:300]}")

    def num(self, *outcomes: str) -> int:
        """How often one of these happened."""
        return sum(counts[outcome] for counts in self.counts.values() for outcome in outcomes)


@dataclass(frozen=True)
class Reply:
    """A response."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Line:
    """A connection, on which several requests may wait for their answers."""

    def __init__(self, port: int, *, timeout: float = PATIENCE, receive_buffer: int = 0) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(timeout)
        self.socket.connect(("127.0.0.1", port))
        self.file: BinaryIO = self.socket.makefile("rb")

    def __enter__(self) -> Line:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self, *, rudely: bool = False) -> None:
        """Closes the connection; rudely: with a reset, as when a process is killed with unread data."""
        with contextlib.suppress(OSError):
            if rudely:
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.file.close()
            self.socket.close()

    def send(self, content: bytes) -> None:
        self.socket.sendall(content)

    def read(self) -> Reply:
        """The next response, whole. LostError if it does not come."""
        status, headers = self.read_head()
        if "chunked" in headers.get("transfer-encoding", ""):
            return Reply(status, headers, b"".join(self.read_chunks()))
        length = int(headers.get("content-length", "0"))
        body = self._bytes(length)
        return Reply(status, headers, body)

    def read_head(self) -> tuple[int, dict[str, str]]:
        """Status and headers."""
        first = self._line()
        if not first.startswith("HTTP/1.1 "):
            raise LostError(f"no status but {first[:40]!r}")
        headers = {}
        while row := self._line():
            name, _, value = row.partition(":")
            headers[name.lower()] = value.strip()
        return int(first.split()[1]), headers

    def read_chunks(self) -> Iterator[bytes]:
        """The pieces of a body without a stated length."""
        while size := int(self._line() or "0", 16):
            yield self._bytes(size)
            self._line()
        self._line()

    def _line(self) -> str:
        row = self.file.readline(100_000)
        if not row:
            raise LostError("the connection is closed")
        return row.decode("latin-1").rstrip("\r\n")

    def _bytes(self, count: int) -> bytes:
        content = self.file.read(count)
        if len(content) < count:
            raise LostError(f"{len(content)} of {count} bytes")
        return content


def request(method: str, path: str, body: bytes = b"", *more: str, kind: str = "application/json") -> bytes:
    """A request as bytes; `more`: further headers."""
    rows = [f"{method} {path} HTTP/1.1", "Host: localhost", *more]
    if body:
        rows += [f"Content-Type: {kind}", f"Content-Length: {len(body)}"]
    return "\r\n".join([*rows, "", ""]).encode("latin-1") + body


def post(path: str, content: Any) -> bytes:
    """A request with JSON."""
    return request("POST", path, json.dumps(content).encode())
