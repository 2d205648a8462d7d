"""What a browser may ask of the page: the few paths that it needs, from the page itself, and nothing of other hosts.

gradio has routes that hand out files of its cache, fetch addresses and run functions by name. The page uses none of
them, so they are closed here, together with those that a later version may add. An event names an uploaded file by
its path on the server: no other file may be named, nor an address, which gradio would fetch.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from utils.serving.gate import replayed, respond

JOIN = "/gradio_api/queue/join"  # begins an event
UPLOAD = "/gradio_api/upload"
MAX_UPLOADED = 50  # times the largest request: what all uploads that were not opened yet may take on the disk
# gradio's: the page, its scripts and styles, uploads, and the queue through which its events go.
PATHS = frozenset(
    {
        "/",
        "/config",
        "/theme.css",
        "/favicon.ico",
        "/manifest.json",
        UPLOAD,
        "/gradio_api/upload_progress",
        JOIN,
        "/gradio_api/queue/data",
        "/gradio_api/startup-events",
        "/gradio_api/reset",
        "/gradio_api/cancel",
    }
)
PATTERNS = re.compile(
    r"/(assets|static|svelte)/[\w./-]+|/gradio_api/heartbeat/\w+|/results/[\w-]+/\d+/[\w.]+"
)
# Scripts and styles of the page are partly inline; nothing is loaded from, or sent to, any other host.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; worker-src 'self' blob:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
HEADERS = [
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
]


class Guard:
    """ASGI middleware: 404 for paths that the page does not need, 403 for requests that other sites cause.

    Args:
        others: paths that are none of the page's.
        folder: where uploads are.
        max_bytes: of one request.
    """

    def __init__(self, app: ASGIApp, *, others: frozenset[str], folder: str, max_bytes: int) -> None:
        self.app = app
        self.others = others
        self.folder = os.path.realpath(folder)
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if scope["type"] != "http" or path in self.others or path.startswith("/v1/models/"):
            await self.app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *HEADERS]}
            await send(message)

        if not (path in PATHS or PATTERNS.fullmatch(path)) or ".." in path:
            await respond(guarded, 404, "there is no such page")
        elif is_foreign(scope):
            await respond(guarded, 403, "another site asks; open the page itself")
        elif path == UPLOAD and size_of(self.folder) > MAX_UPLOADED * self.max_bytes:
            await respond(guarded, 429, "too many uploads were not opened; try again in some minutes")
        elif path == JOIN:
            body = (await receive()).get("body", b"")  # the whole: the gate has read it
            if names_other_files(body, self.folder):
                await respond(guarded, 403, "a file that was not uploaded")
            else:
                await self.app(scope, replayed(body, receive), guarded)
        else:
            await self.app(scope, receive, guarded)


def is_foreign(scope: Scope) -> bool:
    """Whether a browser says that the request comes from the page of another host."""
    headers = {name.lower(): value for name, value in scope["headers"]}
    origin = headers.get(b"origin")
    return origin is not None and origin.partition(b"://")[2] != headers.get(b"host", b"")


def names_other_files(body: bytes, folder: str) -> bool:
    """Whether an event names a file outside the folder of uploads, or is not to be understood."""
    try:
        waiting: list[Any] = [json.loads(body)]
    except (ValueError, RecursionError):
        return True
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            waiting.extend(value.values())
            path = value.get("path")
            if path is not None and not (isinstance(path, str) and is_inside(path, folder)):
                return True
        elif isinstance(value, list):
            waiting.extend(value)
    return False


def is_inside(path: str, folder: str) -> bool:
    """Whether a path, with all its links followed, leads to something in the folder."""
    try:
        real = os.path.realpath(path)
    except ValueError:  # a null character
        return False
    return real.startswith(folder + os.sep)


def size_of(folder: str) -> int:
    """Bytes of all files in a folder."""
    size = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # opened and removed in this moment
                size += os.path.getsize(os.path.join(place, name))
    return size
