"""Clients that die, are slow, do not read, send a gigabyte, or talk nonsense."""

from __future__ import annotations

import contextlib
import io
import json
import socket
import time
from collections.abc import Callable, Iterator
from threading import Event

import numpy as np
from PIL import Image

from benchmarks.attack.work import png
from benchmarks.load.honest import CHAT, SEGMENT, Target, data_url
from benchmarks.load.wire import Line, LostError, Tally, post, request

DYING, SLOW, UNREAD, HUGE, ODD = "dying", "slow to send", "slow to read", "a gigabyte", "odd requests"
GIGABYTE = 10**9
STEP = 0.4  # seconds between two bytes of a slow client
FOREVER = 90.0  # seconds after which a server that waits is one without an end to its patience

Client = Callable[[Target, Tally, Event, np.random.Generator], None]


def rounds(stop: Event) -> Iterator[None]:
    """One at least, and more until the end."""
    yield
    while not stop.is_set():
        yield


def dying(target: Target, tally: Tally, stop: Event, rng: np.random.Generator) -> None:
    """Goes in the head, in the body, while it waits, in the middle of a stream; politely or with a reset."""
    for _ in rounds(stop):
        number = int(rng.integers(len(target.images)))
        content = post(CHAT, target.question(number, stream=bool(rng.integers(2))))
        head = content.index(b"\r\n\r\n")
        place = int(rng.integers(5))
        try:
            line = Line(target.port)
            cut = [int(rng.integers(1, head)), int(rng.integers(head, len(content)))]
            line.send(content[: cut[place]] if place < 2 else content)
            if place == 3:
                time.sleep(float(rng.uniform(0, 0.3)))
            if place == 4:
                line.socket.recv(100)
            line.close(rudely=bool(rng.integers(2)))
            tally.add(DYING, "left")
        except OSError as problem:
            tally.add(DYING, "unexpected", f"{type(problem).__name__} {problem}")
        time.sleep(float(rng.uniform(0.02, 0.2)))


def slow(target: Target, tally: Tally, stop: Event, rng: np.random.Generator) -> None:
    """Sends a byte now and then: of a head, of a body, behind an answer; or nothing at all."""
    body = request("POST", SEGMENT, b"x" * 100_000)
    head = body.index(b"\r\n\r\n")
    starts = {
        "head": (body[:head], 20), "body": (body, head + 100), "nothing": (b"", 0),
        "after an answer": (request("GET", "/health") + body[:head], len(request("GET", "/health")) + 5),
        "behind a refusal": (request("POST", "/v1/nothing", b"", "Transfer-Encoding: chunked"), 10**6),
    }  # fmt: skip
    names = list(starts)
    for _ in rounds(stop):
        name = names[int(rng.integers(len(names)))]
        content, at_once = starts[name]
        begin = time.monotonic()
        try:
            with Line(target.port, timeout=STEP) as line:
                line.send(content[:at_once])
                ended = trickle(line.socket, content[at_once:], begin, stop)
        except OSError:
            ended = True
        seconds = time.monotonic() - begin
        if ended:
            tally.add(SLOW, "cut off")
        elif seconds > FOREVER:
            tally.add(SLOW, "unexpected", f"{name}: the server still waits after {seconds:.0f} s")
        else:
            tally.add(SLOW, "left")


def trickle(client: socket.socket, content: bytes, begin: float, stop: Event) -> bool:
    """Sends byte by byte; True once the server has closed the connection, False when it is time to go."""
    position = 0
    while time.monotonic() - begin < FOREVER and not stop.is_set():
        try:
            if not client.recv(4096):
                return True
        except TimeoutError:
            pass
        except OSError:
            return True
        if position < len(content):
            client.sendall(content[position : position + 1])
            position += 1
    return False


def unread(target: Target, tally: Tally, stop: Event, rng: np.random.Generator) -> None:
    """Asks for overlays of 3 MB, several at once, and does not read them."""
    image = Image.fromarray(rng.integers(0, 256, (900, 1000, 3), dtype=np.uint8))
    query = post(SEGMENT, {"image": data_url(image), "classes": ["dog"], "overlay": True})
    for _ in rounds(stop):
        begin, ended = time.monotonic(), False
        try:
            with Line(target.port, receive_buffer=2048) as line:
                line.send(query * 3)
                while not stop.is_set() and not ended and time.monotonic() - begin < FOREVER:
                    time.sleep(STEP)
                    ended = is_reset(line.socket)
        except OSError:
            ended = True
        if not ended and not stop.is_set():
            tally.add(UNREAD, "unexpected", "the server keeps an answer that nobody reads")
        else:
            tally.add(UNREAD, "cut off" if ended else "left")


def is_reset(client: socket.socket) -> bool:
    """Whether the server has given a connection up, without reading from it."""
    return client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0 or tcp_state(client) != 1


def tcp_state(client: socket.socket) -> int:
    """1: established."""
    return client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]


def huge(target: Target, tally: Tally, stop: Event, rng: np.random.Generator) -> None:
    """A body of 1 GB: announced, announced with a question whether to send it, or in chunks without a length."""
    piece = b"x" * 2**20
    announced = f"Content-Length: {GIGABYTE}"
    for _ in rounds(stop):
        way = int(rng.integers(3))
        more = (announced, "Expect: 100-continue") if way == 1 else (announced,)
        head = request("POST", CHAT, b"", *(more if way < 2 else ("Transfer-Encoding: chunked",)))
        part = piece if way < 2 else b"%x\r\n%s\r\n" % (len(piece), piece)
        begin, sent, status = time.monotonic(), 0, 0
        with Line(target.port) as line:
            try:
                line.send(head)
                while way != 1 and sent < GIGABYTE:
                    line.send(part)
                    sent += len(piece)
            except OSError:
                pass
            with contextlib.suppress(LostError, OSError, ValueError):
                status = line.read().status
        if status not in (0, 408, 413, 429) or sent >= GIGABYTE:
            tally.add(HUGE, "unexpected", f"status {status} after {sent} bytes")
        else:
            tally.add(HUGE, f"status {status}" if status else "cut off")
        time.sleep(max(0.0, 1.0 - (time.monotonic() - begin)))


def odd_requests(target: Target) -> list[tuple[str, bytes, tuple[int, ...]]]:
    """What it is, the request, and the statuses that are right for it."""
    image = target.images[0]
    query = {"image": image, "classes": ["dog"]}
    body = json.dumps(query).encode()
    bomb = data_url_of(png(13_000, 13_000), "png")
    icon = io.BytesIO()
    Image.new("RGB", (32, 32)).save(icon, "ICO")
    return [
        ("text as the content type", request("POST", SEGMENT, body, kind="text/plain"), (400,)),
        ("a form", request("POST", SEGMENT, b"a=b", kind="application/x-www-form-urlencoded"), (400,)),
        ("multipart without a boundary", request("POST", SEGMENT, body, kind="multipart/form-data"), (400,)),
        ("no JSON", request("POST", SEGMENT, b"{"), (400,)),
        ("no UTF-8", request("POST", SEGMENT, b'{"image": "\xff\xfe"}'), (400,)),
        ("nothing", request("POST", SEGMENT), (400,)),
        ("nesting", request("POST", SEGMENT, b"[" * 100_000), (400,)),
        ("a number of a million digits", request("POST", SEGMENT, b"9" * 1_000_000), (400,)),
        ("half a character", post(SEGMENT, {**query, "classes": ["\ud83d"]}), (200, 400)),
        ("half a character in a question", post(CHAT, target.question(0, user="\udfff")), (200, 400)),
        ("half a character as the model", post(SEGMENT, {**query, "model": "\ud83d"}), (404,)),
        ("a threshold that is no number", request("POST", SEGMENT, body[:-1] + b', "threshold": NaN}'), (400,)),
        ("a seed of 40 digits", post(CHAT, target.question(0, seed=10**40, temperature=1.0)), (400,)),
        ("6,000 classes", post(SEGMENT, {**query, "classes": [f"c{n}" for n in range(6_000)]}), (400,)),
        ("a class name of 200,000 letters", post(SEGMENT, {**query, "classes": ["x" * 200_000]}), (400,)),
        ("an image that inflates", post(SEGMENT, {**query, "image": bomb}), (400,)),
        ("an icon", post(SEGMENT, {**query, "image": data_url_of(icon.getvalue(), "ico")}), (400,)),
        ("a JPEG of 10,000 scans", post(SEGMENT, {**query, "image": data_url_of(scans(10_000), "jpeg")}), (400,)),
        ("a file of the machine", post(SEGMENT, {**query, "image": "file:///etc/passwd"}), (400,)),
        ("an address", post(SEGMENT, {**query, "image": "http://169.254.169.254/latest"}), (400,)),
        ("a path that leaves", request("GET", "/v1/models/..%2f..%2fetc%2fpasswd"), (404,)),
        ("another host", request("GET", "/health").replace(b"localhost", b"evil.example"), (200, 403)),
        ("another method", request("DELETE", SEGMENT), (405,)),
        ("a head of 1 MB", request("GET", "/health", b"", f"X: {'x' * 1_000_000}"), (400, 431)),
        ("10,000 fields", request("GET", "/health", b"", *(f"X{n}: 1" for n in range(10_000))), (200, 400, 431)),
        ("two lengths", request("POST", SEGMENT, body, "Content-Length: 1"), (400,)),
        ("a negative length", request("POST", SEGMENT, b"", "Content-Length: -5"), (400,)),
        ("a length of 400 digits", request("POST", SEGMENT, b"", f"Content-Length: {'9' * 400}"), (400, 413)),
        ("an unknown coding", request("POST", SEGMENT, b"", "Transfer-Encoding: gzip, chunked"), (400, 501)),
        ("a wrong chunk", request("POST", SEGMENT, b"", "Transfer-Encoding: chunked") + b"zz\r\n", (400,)),
        ("noise", bytes(range(256)) * 8 + b"\r\n\r\n", (400,)),
        ("a websocket", request("GET", "/health", b"", "Connection: Upgrade", "Upgrade: websocket",
                                "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: eA=="), (200, 400)),
        ("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64) + b"\r\n\r\n", (400,)),
    ]  # fmt: skip


def data_url_of(content: bytes, kind: str) -> str:
    import base64

    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def scans(count: int) -> bytes:
    """A small progressive JPEG whose last scan is repeated."""
    file = io.BytesIO()
    Image.new("RGB", (64, 64)).save(file, "JPEG", progressive=True)
    content = file.getvalue()
    last = content.rindex(b"\xff\xda")
    return content[:last] + content[last:-2] * count + content[-2:]


def odd(target: Target, tally: Tally, stop: Event, rng: np.random.Generator) -> None:
    """One odd request after the other, and sometimes hundreds of good ones on one connection."""
    requests = odd_requests(target)
    for _ in rounds(stop):
        what, content, right = requests[int(rng.integers(len(requests)))]
        try:
            with Line(target.port) as line:
                if rng.integers(10) == 0:
                    many(line, tally)
                line.send(content)
                status = line.read().status
        except (LostError, OSError, ValueError) as problem:
            tally.add(ODD, "cut off", "" if isinstance(problem, ConnectionError) else f"{what}: {problem!r}")
            continue
        if status in right or status == 429:
            tally.add(ODD, "as it should be")
        else:
            tally.add(ODD, "unexpected", f"{what}: status {status}")
        time.sleep(float(rng.uniform(0.02, 0.2)))


def many(line: Line, tally: Tally) -> None:
    """Two hundred requests on one connection, fifty of them at once."""
    for _ in range(4):
        line.send(request("GET", "/health") * 50)
        for _ in range(50):
            if line.read().status != 200:
                tally.add(ODD, "unexpected", "/health does not answer")


KINDS: dict[str, Client] = {DYING: dying, SLOW: slow, UNREAD: unread, HUGE: huge, ODD: odd}
