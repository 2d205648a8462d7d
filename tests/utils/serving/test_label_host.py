"""Images of Label Studio: from its own address with its token, which nobody else gets; from elsewhere as allowed."""

from __future__ import annotations

import base64
import http.server
import json
import threading
from urllib.parse import parse_qs, urlsplit

import pytest

from model.errors import UserError
from utils.serving.fetch import Limits
from utils.serving.label_host import LabelHost

CONTENT = bytes(range(256))
LEGACY, PERSONAL, ACCESS = "abc123", "aaa.bbb.ccc", "xxx.yyy.zzz"
NO_URLS = Limits(max_bytes=10_000)


class LabelStudio(http.server.BaseHTTPRequestHandler):
    """Gives images to those who bring a token, sends others to its login page, signs cloud addresses."""

    elsewhere = ""  # where signed addresses lead

    def do_GET(self) -> None:
        self.server.seen.append((self.path, self.headers.get("Authorization")))
        if self.headers.get("Authorization") not in (f"Token {LEGACY}", f"Bearer {ACCESS}"):
            if self.path.startswith("/data/login/"):
                self.answer(302, Location=f"/user/login/?next={self.path}")
            else:
                self.answer(401)
        elif "*/*" not in self.headers["Accept"]:  # its framework knows no images
            self.answer(406)
        elif self.path.startswith("/tasks/"):
            self.answer(303, Location=self.elsewhere)
        else:
            self.answer(404 if "none" in self.path else 200, CONTENT)

    def do_POST(self) -> None:
        token = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["refresh"]
        self.server.seen.append((self.path, token))
        self.answer(200 if token == PERSONAL else 401, json.dumps({"access": ACCESS}).encode())

    def answer(self, status: int, content: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def label_studio():
    """A Label Studio at a private address; `url` is where, `seen` what was asked of it."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), LabelStudio)
    server.seen = []
    server.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ("/data/upload/1/a.png", "/data/upload/1/a.png"),
        ("upload/1/a.png", "/data/upload/1/a.png"),
        ("/data/local-files/?d=my photos/ä.png", "/data/local-files/?d=my%20photos/%C3%A4.png"),
        ("URL/data/upload/1/a.png", "/data/upload/1/a.png"),
    ],
)
def test_its_own_images_are_fetched_with_the_token(label_studio, value, path):
    host = LabelHost(label_studio.url + "/", LEGACY)
    assert host.image_bytes(value.replace("URL", label_studio.url), 1, NO_URLS) == CONTENT
    assert label_studio.seen == [(path, f"Token {LEGACY}")]


def test_a_personal_access_token_is_exchanged_once(label_studio):
    host = LabelHost(label_studio.url, PERSONAL)
    for name in "ab":
        assert host.image_bytes(f"/data/upload/1/{name}.png", 1, NO_URLS) == CONTENT
    assert label_studio.seen == [
        ("/api/token/refresh", PERSONAL),
        ("/data/upload/1/a.png", f"Bearer {ACCESS}"),
        ("/data/upload/1/b.png", f"Bearer {ACCESS}"),
    ]


def test_nobody_else_gets_the_token_or_is_asked_unless_it_is_allowed(label_studio):
    other = http.server.ThreadingHTTPServer(("127.0.0.1", 0), LabelStudio)
    other.seen = []
    threading.Thread(target=other.serve_forever, daemon=True).start()
    LabelStudio.elsewhere = address = f"http://127.0.0.1:{other.server_port}/secret.png"
    host = LabelHost(label_studio.url, LEGACY)
    try:
        for value in (address, "s3://bucket/a.png"):
            for limits in (NO_URLS, Limits(max_bytes=10_000, allow_urls=True)):
                with pytest.raises(UserError, match=r"without --allow_urls|not a public address"):
                    host.image_bytes(value, 7, limits)
        assert other.seen == []
    finally:
        other.shutdown()
        other.server_close()


def test_cloud_addresses_are_signed_by_label_studio(label_studio):
    LabelStudio.elsewhere = "/signed/a.png"
    host = LabelHost(label_studio.url, LEGACY)
    assert host.image_bytes("s3://bucket/ä b.png", 7, NO_URLS) == CONTENT
    signed = urlsplit(label_studio.seen[0][0])
    assert signed.path == "/tasks/7/presign/"
    [code] = parse_qs(signed.query)["fileuri"]
    assert base64.urlsafe_b64decode(code).decode() == "s3://bucket/ä b.png"


@pytest.mark.parametrize(
    ("token", "value", "message"),
    [
        ("", "/data/upload/1/a.png", "wants a token; pass --label_studio_token"),
        ("", "/data/login/1/a.png", "leads to a login page: it wants a token; pass --label_studio_token"),
        ("wrong", "/data/upload/1/a.png", "status 401: it wants a token; check --label_studio_token"),
        ("wrong.personal.token", "/data/upload/1/a.png", "refuses the personal access token"),
        (LEGACY, "/data/upload/1/none.png", "answers with status 404"),
        (LEGACY, "a.png", "is no address of an image"),
        (LEGACY, "C:\\photos\\a.png", "is no address of an image"),
        (LEGACY, "file:///etc/passwd", "is no address of an image"),
        (LEGACY, "", "is no address of an image"),
    ],
)
def test_what_cannot_be_fetched_says_what_to_change(label_studio, token, value, message):
    with pytest.raises(UserError, match=message):
        LabelHost(label_studio.url, token).image_bytes(value, 1, NO_URLS)


def test_without_an_address_uploads_are_refused_and_images_in_the_task_are_not():
    host = LabelHost()
    with pytest.raises(UserError, match=r"say where that is: --label_studio_url \(or LABEL_STUDIO_URL\)"):
        host.image_bytes("/data/upload/1/a.png", 1, NO_URLS)
    with pytest.raises(UserError, match="without --allow_urls"):
        host.image_bytes("http://example.com/a.png", 1, NO_URLS)
    code = base64.b64encode(CONTENT).decode()
    assert host.image_bytes(f"data:image/png;base64,{code}", 1, NO_URLS) == CONTENT


def test_a_label_studio_that_is_not_there_is_said(label_studio):
    label_studio.shutdown()
    label_studio.server_close()
    for token in (LEGACY, PERSONAL):
        with pytest.raises(UserError, match="cannot be reached"):
            LabelHost(label_studio.url, token).image_bytes("/data/upload/1/a.png", 1, NO_URLS)


@pytest.mark.parametrize(
    ("url", "token", "message"),
    [
        ("localhost:8080", "", r"--label_studio_url \(or LABEL_STUDIO_URL\): localhost:8080 is no address"),
        ("ftp://localhost", "", "is no address of the web"),
        ("", "abc", "--label_studio_token belongs to an address"),
        ("http://localhost", "a\nb", "has letters that a token has not"),
    ],
)
def test_flags_that_are_wrong_are_said_at_the_start(url, token, message):
    with pytest.raises(UserError, match=message):
        LabelHost(url, token)
