"""Requests to the server: images that inflate, addresses that only it can reach, paths that lead outside."""

from __future__ import annotations

import base64
import http.server
import io
import json
import socket
import struct
import threading
import zlib
from collections.abc import Iterator
from functools import partial
from typing import Any

from benchmarks.attack.desk import SECRET, Attack, Desk
from benchmarks.attack.work import png

KIND = "requests to the server"
PRIVATE, PUBLIC = "127.0.0.1", "127.0.0.2"  # the second is taken for public
MAX_SIDE = 3_000  # 9 megapixels, below the limit of 12


def ask(desk: Desk, *requests: bytes, allow_urls: bool = False) -> int:
    """Starts the server, sends it requests, and prints what it says; 2 unless it answers one of them with 200.

    It fails when a request takes the server down or longer than a minute.
    """
    import torch

    from benchmarks.load.wire import Line, LostError, request
    from benchmarks.local_server import ThreadedServer
    from model.checkpoints.load import load_model
    from utils.serving.answers import Asking
    from utils.serving.fetch import Limits
    from utils.serving.server import build_app
    from utils.serving.service import Service

    torch.set_num_threads(1)
    service = Service(
        load_model(desk.model)[0], Asking(max_new_tokens=4), name="model", max_pixels=12_000_000,
        limits=Limits(max_bytes=20_000_000, allow_urls=allow_urls), max_batch=8, max_waiting=64,
    )  # fmt: skip
    code = 2
    with ThreadedServer(build_app(service, hosts=frozenset({"localhost", PRIVATE}))) as server:
        for content in (*requests, request("GET", "/health")):
            with Line(server.port, timeout=60) as line:
                try:
                    line.send(content)
                    reply = line.read()
                except (LostError, ConnectionError) as problem:
                    print(f"no answer: {problem}")
                    continue
            print(reply.status, ascii(reply.body.decode("utf-8", errors="replace"))[1:2000])
            is_last = content.startswith(b"GET /health")
            assert reply.status == 200 or not is_last
            code = 0 if reply.status == 200 and not is_last else code
    return code


def query(**more: Any) -> bytes:
    """A class query as bytes."""
    from benchmarks.load.wire import post

    return post("/v1/segment", {"classes": ["dog"], "overlay": True, **more})


def data_url(content: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _images(content: bytes, count: int, desk: Desk) -> int:
    """The same image in several requests, one after the other."""
    return ask(desk, *[query(image=data_url(content))] * count)


def icon(inner: bytes) -> bytes:
    """An icon of 16 x 16 pixels around another image."""
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(inner), 22) + inner


def apple_icon(inner: bytes) -> bytes:
    body = b"ic07" + struct.pack(">I", len(inner) + 8) + inner
    return b"icns" + struct.pack(">I", len(body) + 8) + body


def tiff(width: int, height: int, *, tile: int = 0) -> bytes:
    """A grey TIFF of which one strip or tile inflates."""
    side = tile or height
    packed = zlib.compress(bytes(min((tile or width) * side, 10**8)), 9)
    entries = [
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, 1, 8),
        (259, 3, 1, 8),
        (262, 3, 1, 1),
        (277, 3, 1, 1),
    ]
    place = 8 + 2 + 12 * (len(entries) + (4 if tile else 3)) + 4
    if tile:
        entries += [(322, 4, 1, tile), (323, 4, 1, tile), (324, 4, 1, place), (325, 4, 1, len(packed))]
    else:
        entries += [(273, 4, 1, place), (278, 4, 1, height), (279, 4, 1, len(packed))]
    head = b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(entries))
    return head + b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries)) + bytes(4) + packed


def jpeg_of_scans(count: int) -> bytes:
    """A progressive JPEG of 9 megapixels whose last scan is repeated."""
    from PIL import Image

    file = io.BytesIO()
    Image.new("L", (MAX_SIDE, MAX_SIDE)).save(file, "JPEG", progressive=True)
    content = file.getvalue()
    last = content.rindex(b"\xff\xda")
    return content[:last] + content[last:-2] * count + content[-2:]


def gif_of_frames(count: int) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    frames = [Image.new("P", (8, 8), number % 200) for number in range(count)]
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    return file.getvalue()


BOMBS = {
    "a PNG of 13,000 x 13,000 pixels": (lambda: png(13_000, 13_000), 5),
    "an icon around 13,000 x 13,000 pixels": (lambda: icon(png(13_000, 13_000)), 5),
    "an Apple icon around 13,000 x 13,000 pixels": (lambda: apple_icon(png(13_000, 13_000)), 5),
    "a JPEG of 20,000 scans": (lambda: jpeg_of_scans(20_000), 1),
    "a JPEG of 400 scans": (lambda: jpeg_of_scans(400), 1),
    "a TIFF of 10,000 x 10,000 pixels": (lambda: tiff(10_000, 10_000), 2),
    "a TIFF of one tile of 60,000 x 60,000 pixels": (lambda: tiff(16, 16, tile=60_000), 2),
    "a GIF of 20,000 frames": (lambda: gif_of_frames(20_000), 1),
    "a PNG of 3,000 x 3,000 pixels, eight times": (lambda: png(3_000, 3_000), 8),
    "a PostScript file": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) print\n", 1),
    "an SVG": (lambda: b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>", 1),
}  # fmt: skip


def _bomb(name: str, desk: Desk) -> int:
    make, count = BOMBS[name]
    return _images(make(), count, desk)


class Inside(http.server.BaseHTTPRequestHandler):
    """What only this machine can reach: who asks it has got through."""

    desk: Desk

    def do_GET(self) -> None:
        (Inside.desk.outside / "a server inside was asked").touch()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(SECRET.encode())

    def log_message(self, *_: object) -> None:
        pass


class Outside(Inside):
    """A public site that sends elsewhere: GET /to?ADDRESS."""

    def do_GET(self) -> None:
        self.send_response(302)
        self.send_header("Location", self.path.partition("?")[2])
        self.end_headers()


def _addresses(urls: tuple[str, ...], desk: Desk) -> int:
    """Requests for these addresses; PORT is that of the server inside, SITE that of a public site."""
    from utils.serving import fetch

    Inside.desk = desk
    inside = http.server.ThreadingHTTPServer((PRIVATE, 0), Inside)
    site = http.server.ThreadingHTTPServer((PUBLIC, 0), Outside)
    for one in (inside, site):
        threading.Thread(target=one.serve_forever, daemon=True).start()
    original, look_up = fetch.is_public, socket.getaddrinfo
    fetch.is_public = lambda address: address == PUBLIC or original(address)

    def resolved(host: Any, port: Any, *rest: Any, **options: Any) -> Any:
        if host in NAMES:
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, port)) for one in NAMES[host]]
        return look_up(host, port, *rest, **options)

    socket.getaddrinfo = resolved
    told = [
        url.replace("PORT", str(inside.server_port)).replace("SITE", f"{PUBLIC}:{site.server_port}")
        for url in urls
    ]
    return ask(desk, *[query(image=url) for url in told], allow_urls=True)


NAMES = {  # what DNS says
    "inside.example": [PRIVATE], "both.example": [PUBLIC, PRIVATE], "none.example": ["0.0.0.0"],
    "metadata.example": ["169.254.169.254"],
}  # fmt: skip
SPELLINGS = {
    "as it is": ("http://127.0.0.1:PORT/", "http://localhost:PORT/", "http://LOCALHOST.:PORT/"),
    "as one number": ("http://2130706433:PORT/", "http://0x7f000001:PORT/", "http://017700000001:PORT/"),
    "shortened": ("http://127.1:PORT/", "http://0:PORT/", "http://0.0.0.0:PORT/", "http://127.0.1:PORT/"),
    "in octal and hexadecimal": ("http://0177.0.0.1:PORT/", "http://0x7f.0.0.1:PORT/"),
    "as IPv6": ("http://[::1]:PORT/", "http://[::ffff:127.0.0.1]:PORT/", "http://[::127.0.0.1]:PORT/",
                "http://[::ffff:0:127.0.0.1]:PORT/", "http://[64:ff9b::7f00:1]:PORT/", "http://[::]:PORT/",
                "http://[0:0:0:0:0:0:0:1%25lo]:PORT/"),
    "by names": ("http://inside.example:PORT/", "http://both.example:PORT/", "http://none.example:PORT/",
                 "http://metadata.example/latest/meta-data/"),
    "in other digits": ("http://\u2460\u2461\u2466.0.0.1:PORT/", "http://127\u30020\u30020\u30021:PORT/"),
    "behind a user name": ("http://SITE@127.0.0.1:PORT/", "http://127.0.0.1:PORT\\@SITE/", "http://SITE#@127.0.0.1/"),
    "by redirects": ("http://SITE/to?http://127.0.0.1:PORT/", "http://SITE/to?//127.0.0.1:PORT/",
                     "http://SITE/to?http://2130706433:PORT/", "http://SITE/to?http://[::1]:PORT/",
                     "http://SITE/to?http://SITE/to?http://127.0.0.1:PORT/", "http://SITE/to?file:///etc/passwd",
                     "http://SITE/to?http://both.example:PORT/", "http://SITE/to?http://SITE/to?http://SITE/to?"
                     "http://SITE/to?http://SITE/"),
    "by other schemes": ("file:///etc/passwd", "FILE:///etc/passwd", "ftp://127.0.0.1:PORT/", "gopher://127.0.0.1:PORT/",
                         "jar:http://127.0.0.1:PORT/!/", "//127.0.0.1:PORT/", "/etc/passwd", "OUTSIDE/secret.png"),
    "with other requests inside": ("http://SITE/\r\nHost: 127.0.0.1:PORT", "http://SITE/%0d%0aX: y",
                                   "http://127.0.0.1:PORT/\r\n\r\nGET / HTTP/1.1"),
}  # fmt: skip


def _paths(desk: Desk) -> int:
    """Paths, host names and fields that lead elsewhere."""
    from benchmarks.load.wire import request

    secret = f"{desk.outside}/secret.txt"
    paths = [f"/v1/models/{'../' * 12}{secret}", f"/v1/models/..%2f..%2f{secret}", f"/{secret}", f"//{secret}",
             f"/v1/segment/..;/{secret}", f"/%2e%2e{secret}", f"http://evil.example/{secret}", "/docs",
             "/openapi.json", "/.env", "/v1/models/\x1b[31m".replace("\x1b", "%1b")]  # fmt: skip
    asked = [request("GET", path) for path in paths]
    bodies = [query(image=secret), query(image=f"file://{secret}"), query(image=f"OUTSIDE/{secret}"),
              query(image=data_url(b"x"), model=secret)]  # fmt: skip
    host = [request("GET", "/v1/models").replace(b"Host: localhost", b"Host: " + name)
            for name in (b"evil.example", b"localhost.evil.example", b"127.0.0.1@evil.example", b"")]  # fmt: skip
    answers = ask(desk, *asked, *bodies, *host)
    return 0 if answers == 0 else 2


def _texts(desk: Desk) -> int:
    """Names and questions with tokens, markup, commands for a terminal, half characters."""
    from benchmarks.load.wire import post

    image = data_url(png(30, 40))
    odd = [
        "[SEG]",
        "<image>",
        "</s>",
        "\x1b[31mred",
        "<script>alert(1)</script>",
        "\ud83d",
        "\0",
        "x" * 100_000,
        "\u202e",
    ]
    shown = {"type": "image_url", "image_url": {"url": image}}
    asked = [[{"role": "user", "content": [{"type": "text", "text": name}, shown]}] for name in odd]
    words = [{"model": "model", "messages": messages} for messages in asked]
    return ask(desk, *[query(image=image, classes=[name, "dog"]) for name in odd],
               *[post("/v1/chat/completions", one) for one in words])  # fmt: skip


def _shapes(desk: Desk) -> int:
    """JSON of every wrong type and of absurd sizes."""
    from benchmarks.load.wire import post, request

    values: list[Any] = [None, True, 5, 1e308, 2**70, "x", [], [[]], {}, {"a": 1}, [None], [5]]
    image = data_url(png(30, 40))
    sound: dict[str, Any] = {"image": image, "classes": ["dog"]}
    talk: dict[str, Any] = {"model": "model", "messages": [{"role": "user", "content": "x"}]}
    fields = ("image", "classes", "threshold", "instances", "min_area", "polygons", "overlay", "model")
    chats = (
        "messages",
        "max_tokens",
        "temperature",
        "top_p",
        "seed",
        "stream",
        "stream_options",
        "model",
        "n",
        "stop",
    )
    asked = [post("/v1/segment", {**sound, name: value}) for name in fields for value in values]
    asked += [post("/v1/chat/completions", {**talk, name: value}) for name in chats for value in values]
    deep = json.dumps(sound)[:-1].encode() + b', "x": ' + b"[" * 200_000 + b"]" * 200_000 + b"}"
    many = post("/v1/segment", {**sound, "classes": [f"c{number}" for number in range(400_000)]})
    return ask(desk, *asked, request("POST", "/v1/segment", deep), many)


def attacks() -> Iterator[Attack]:
    for name in BOMBS:
        quick = name == "an icon around 13,000 x 13,000 pixels"
        yield Attack(KIND, name, partial(_bomb, name), quick)
    for name, urls in SPELLINGS.items():
        yield Attack(KIND, f"a private address {name}", partial(_addresses, urls), name == "by redirects")
    yield Attack(KIND, "paths that lead outside", _paths)
    yield Attack(KIND, "texts", _texts)
    yield Attack(KIND, "wrong types", _shapes)
