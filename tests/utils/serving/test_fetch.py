"""Images by address: only from the public web, whatever names, redirects and DNS answers say."""

from __future__ import annotations

import base64
import contextlib
import http.server
import socket
import threading
import time

import pytest

from model.errors import UserError
from utils.serving import fetch
from utils.serving.fetch import Limits, image_bytes, is_public

CONTENT = bytes(range(256)) * 8
OPEN = Limits(max_bytes=10_000, allow_urls=True)


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "0.0.0.0", "100.64.0.1", "224.0.0.1",
     "255.255.255.255", "198.18.0.1", "192.0.2.1", "::1", "::", "fe80::1%eth0", "fc00::1", "ff02::1",
     "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::127.0.0.1", "::ffff:0:127.0.0.1",
     "64:ff9b::7f00:1", "2002:7f00:1::", "2001:0:7f00:1::"],
)  # fmt: skip
def test_addresses_that_only_some_can_reach_are_not_public(address):
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "2606:4700::1111", "::ffff:8.8.8.8"])
def test_others_are(address):
    assert is_public(address)


class Site(http.server.BaseHTTPRequestHandler):
    """Answers that a test wants, by path."""

    seen: list[tuple[str, str]] = []  # noqa: RUF012, (Host, path)

    def do_GET(self) -> None:
        Site.seen.append((self.headers["Host"], self.path))
        if self.path.startswith("/to?"):
            self.send_response(302)
            self.send_header("Location", self.path[4:])
            self.end_headers()
            return
        if self.path == "/slow":
            with contextlib.suppress(OSError):
                for _ in range(100):
                    self.wfile.write(b"H")  # a byte of a status line now and then
                    time.sleep(0.05)
            return
        self.send_response(404 if self.path == "/none" else 200)
        self.end_headers()
        with contextlib.suppress(OSError):
            for _ in range(100 if self.path == "/trickle" else 0):
                self.wfile.write(b"x")
                time.sleep(0.05)
            self.wfile.write(CONTENT * (1000 if self.path == "/large" else 1))

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def site(monkeypatch):
    """A site on this machine that takes itself for public; `names` maps hosts to the addresses that DNS gives."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    names = {"site.example": ["127.0.0.1"]}
    connected: list[str] = []
    original, create, public = socket.getaddrinfo, socket.create_connection, fetch.is_public

    def look_up(host, port, *rest, **options):
        if host == "127.0.0.1":
            return original(host, port, *rest, **options)
        if host not in names:
            raise socket.gaierror("unknown")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in names[host]]

    def connect(place, **rest):
        connected.append(place[0])
        return create(place, **rest)

    monkeypatch.setattr(fetch.socket, "getaddrinfo", look_up)
    monkeypatch.setattr(fetch.socket, "create_connection", connect)
    monkeypatch.setattr(fetch, "is_public", lambda address: address == "127.0.0.1" or public(address))
    Site.seen.clear()
    yield type("Found", (), {"port": server.server_port, "names": names, "connected": connected})
    server.shutdown()
    server.server_close()


def test_an_image_is_fetched_under_its_own_name_from_the_address_that_was_checked(site):
    assert image_bytes(f"http://site.example:{site.port}/a.png?b=1", OPEN) == CONTENT
    assert Site.seen == [(f"site.example:{site.port}", "/a.png?b=1")]
    assert site.connected == ["127.0.0.1"]


def test_redirects_are_followed_and_checked_like_the_first_address(site):
    base = f"http://site.example:{site.port}"
    assert image_bytes(f"{base}/to?{base}/a.png", OPEN) == CONTENT
    assert image_bytes(f"{base}/to?/a.png", OPEN) == CONTENT
    site.names["inside.example"] = ["10.0.0.7"]
    site.connected.clear()
    for target in (
        "http://inside.example/", "http://169.254.169.254/latest", "file:///etc/passwd", "ftp://site.example/"
    ):  # fmt: skip
        site.names["169.254.169.254"] = ["169.254.169.254"]
        with pytest.raises(UserError, match=r"not a public address|no address of the web"):
            image_bytes(f"{base}/to?{target}", OPEN)
    assert set(site.connected) == {"127.0.0.1"}, "no other address was connected to"
    with pytest.raises(UserError, match="more than 3 redirects"):
        image_bytes(f"{base}/to?{base}/to?{base}/to?{base}/to?{base}/a.png", OPEN)


def test_one_private_answer_of_dns_is_enough_to_refuse(site):
    site.names["both.example"] = ["127.0.0.1", "192.168.0.1"]
    with pytest.raises(UserError, match=r"both\.example is not a public address"):
        image_bytes(f"http://both.example:{site.port}/", OPEN)
    assert site.connected == []


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://nowhere.example/", "there is no host nowhere.example"),
        ("http://user:word@site.example/", "no address of the web"),
        ("http:///a.png", "no address of the web"),
        ("http://site.example:99999/", "is no address"),
        ("http://site.example/\r\nX: y", "letters that an address has not"),
        ("gopher://site.example/", "send the image itself"),
        ("", "send the image itself"),
    ],
)
def test_addresses_that_are_none_are_refused(site, url, message):
    with pytest.raises(UserError, match=message):
        image_bytes(url, OPEN)


def test_what_is_too_large_missing_or_slow_is_refused(site, monkeypatch):
    base = f"http://site.example:{site.port}"
    with pytest.raises(UserError, match="more than 10,000 bytes"):
        image_bytes(f"{base}/large", OPEN)
    with pytest.raises(UserError, match="answers with status 404"):
        image_bytes(f"{base}/none", OPEN)
    with pytest.raises(UserError, match=r"cannot be fetched|no secure connection"):
        image_bytes(f"https://site.example:{site.port}/", OPEN)
    monkeypatch.setattr(fetch, "SECONDS", -1.0)
    with pytest.raises(UserError, match="too slow"):
        image_bytes(f"{base}/", OPEN)


@pytest.mark.parametrize("path", ["/slow", "/trickle"])
def test_a_byte_now_and_then_takes_no_longer_than_allowed(site, monkeypatch, path):
    monkeypatch.setattr(fetch, "SECONDS", 0.5)
    begin = time.monotonic()
    with pytest.raises(UserError, match=r"takes longer than 0\.5 seconds"):
        image_bytes(f"http://site.example:{site.port}{path}", OPEN)
    assert time.monotonic() - begin < 2.5


def test_nothing_is_fetched_unless_it_is_allowed(site):
    with pytest.raises(UserError, match="without --allow_urls"):
        image_bytes(f"http://site.example:{site.port}/", Limits(max_bytes=100))
    assert site.connected == []


def test_a_data_url_is_its_content():
    code = base64.b64encode(CONTENT).decode()
    assert image_bytes(f"data:image/png;base64,{code}", OPEN) == CONTENT
    assert image_bytes(f"data:;base64,{code[:100]}\n{code[100:]}", OPEN) == CONTENT
    with pytest.raises(UserError, match="of at most 1,000; shrink it"):
        image_bytes(f"data:image/png;base64,{code}", Limits(max_bytes=1000))
