"""chat.py --serve from the command line's side."""

from __future__ import annotations

import asyncio
import base64
import logging
import socket
import sys
import threading
import urllib.request

import pytest

import chat
from tests.commands import complaint

uvicorn = pytest.importorskip("uvicorn", reason="an optional package of the server")


@pytest.fixture
def run(tiny, monkeypatch):
    """Runs chat.py with the tiny model; returns the application and its socket instead of serving."""
    monkeypatch.setattr(chat, "load_model", lambda *_, **__: (tiny, tiny.processor))
    monkeypatch.delenv("LASAGNA_API_KEY", raising=False)
    started = []

    def note(self, sockets):
        started.append((self.config, sockets[0].getsockname()))

    monkeypatch.setattr(uvicorn.Server, "run", note)

    def go(*flags):
        started.clear()
        code = chat.main(["--version=models/toy", "--serve", *flags])
        return code, *(started[0] if started else (None, None))

    return go


def test_it_listens_on_this_machine_alone_and_says_where(run, capsys):
    code, config, address = run("--port=0")
    assert code == 0
    assert address[0] == "127.0.0.1"
    assert capsys.readouterr().out == f"toy at http://127.0.0.1:{address[1]}/v1 (Ctrl-C stops it)\n"
    assert config.app.title == "LaSagnA"


def test_it_leaves_the_log_handlers_of_others_alone(run, monkeypatch):
    """Closed, absl's handler would close the stream that it writes to."""
    closed = []
    handler = logging.Handler()
    monkeypatch.setattr(handler, "close", lambda: closed.append(1))
    assert run("--port=0")[0] == 0
    assert not closed


def test_without_a_key_other_machines_are_warned_of(run, caplog, monkeypatch):
    assert run("--host=0.0.0.0", "--port=0")[0] == 0
    assert "without --api_key" in caplog.text
    caplog.clear()
    monkeypatch.setenv("LASAGNA_API_KEY", "secret")
    assert run("--host=0.0.0.0", "--port=0")[0] == 0
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--serve", "--port=99999"], "--port must be in 0 to 65535, got 99999"),
        (["--serve", "--host=no.such.host.invalid"], "--host no.such.host.invalid is no address"),
        (["--serve", "--image=a.png"], "--image is no setting of the server"),
        (["--serve", "--json"], "--json is no setting of the server"),
        (["--serve", "--max_batch=0"], "--max_batch must be > 0"),
        (["--web", "--image=a.png"], "--image is no setting of the server"),
        (["--web", "--max_batch=0"], "--max_batch must be > 0"),
        (["--serve", "--share"], "--share is a setting of the page; pass --web too"),
        (["--examples=photos"], "--examples is a setting of the server; pass --serve or --web too"),
        (["--port=1234"], "--port is a setting of the server; pass --serve or --web too"),
        (["--api_key=x"], "--api_key is a setting of the server; pass --serve or --web too"),
        (
            ["--label_studio_url=http://x"],
            "--label_studio_url is a setting of the server; pass --serve or --web too",
        ),
        (
            ["--serve", "--label_studio_url=localhost:8080"],
            "--label_studio_url (or LABEL_STUDIO_URL): localhost:8080",
        ),
        (["--serve", "--label_studio_token=x"], "pass --label_studio_url too"),
    ],
)
def test_bad_settings_are_one_line_before_a_model_is_loaded(flags, message, monkeypatch, capsys):
    monkeypatch.setattr(chat, "load_model", lambda *_, **__: pytest.fail("the model was loaded"))
    monkeypatch.delenv("LABEL_STUDIO_URL", raising=False)
    assert chat.main(["--version=any", *flags]) == 2
    assert message in complaint(capsys)


def test_a_port_in_use_and_a_missing_package_are_one_line(run, monkeypatch, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert run(f"--port={taken.getsockname()[1]}")[0] == 2
        assert "choose another port" in complaint(capsys)
    monkeypatch.setitem(sys.modules, "fastapi", None)
    assert run()[0] == 2
    assert "of which fastapi is missing: pip install fastapi uvicorn prometheus-client" in complaint(capsys)


def test_without_gradio_there_is_one_message_and_no_model_is_loaded(monkeypatch, capsys):
    monkeypatch.setattr(chat, "load_model", lambda *_, **__: pytest.fail("the model was loaded"))
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert chat.main(["--web"]) == 2
    complaint(
        capsys,
        "--web needs optional packages, of which gradio is missing: "
        "pip install gradio fastapi uvicorn prometheus-client",
    )


def test_a_page_needs_examples_that_are_images(monkeypatch, tmp_path, capsys):
    pytest.importorskip("gradio", reason="an optional package of the page")
    monkeypatch.setattr(chat, "load_model", lambda *_, **__: pytest.fail("the model was loaded"))
    (tmp_path / "notes.txt").write_text("x")
    assert chat.main(["--web", f"--examples={tmp_path}"]) == 2
    assert "--examples" in complaint(capsys)
    assert chat.main(["--web", f"--examples={tmp_path / 'none'}"]) == 2
    assert "--examples" in complaint(capsys)


def test_page_and_api_share_one_port_and_a_browser_is_asked_for_the_key(run, capsys, monkeypatch):
    pytest.importorskip("gradio", reason="an optional package of the page")
    code, config, address = run("--web", "--port=0", "--api_key=secret")
    assert code == 0
    here = f"http://127.0.0.1:{address[1]}"
    assert capsys.readouterr().out == f"toy at {here}/, {here}/v1 (Ctrl-C stops it)\n"
    basic = b"Basic " + base64.b64encode(b"anybody:secret")
    for path in ("/", "/v1/models", "/config"):
        status, headers = get(config.app, path)
        assert status == 401
        assert headers[b"www-authenticate"].startswith(b"Basic ")
        assert get(config.app, path, (b"authorization", basic))[0] == 200


def test_a_shared_page_is_found_under_its_link_and_warns(run, monkeypatch, capsys, caplog):
    networking = pytest.importorskip("gradio.networking", reason="an optional package of the page")
    monkeypatch.setattr(networking, "setup_tunnel", lambda *_: "https://abc.gradio.live")
    code, config, _ = run("--web", "--port=0", "--share")
    assert code == 0
    assert ", https://abc.gradio.live, " in capsys.readouterr().out
    assert "listening on https://abc.gradio.live without --api_key" in caplog.text
    assert get(config.app, "/health", (b"host", b"abc.gradio.live"))[0] == 200
    assert get(config.app, "/health", (b"host", b"evil.example"))[0] == 403

    def fails(*_):
        raise OSError("no network")

    monkeypatch.setattr(networking, "setup_tunnel", fails)
    assert run("--web", "--port=0", "--share")[0] == 2
    assert "--share: there is no tunnel (no network); leave it out" in complaint(capsys)


def get(app, path, *headers):
    """Status and headers of a GET request, without a socket."""
    told = []

    async def ask():
        async def receive():
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message):
            told.append(message)

        scope = {
            "type": "http", "method": "GET", "path": path, "raw_path": path.encode(), "query_string": b"",
            "headers": list({b"host": b"127.0.0.1", **dict(headers)}.items()),
            "http_version": "1.1", "scheme": "http", "server": ("127.0.0.1", 80), "client": ("127.0.0.1", 1),
            "root_path": "",
        }  # fmt: skip
        await app(scope, receive, send)

    asyncio.run(ask())
    return told[0]["status"], {name.lower(): value for name, value in told[0]["headers"]}


@pytest.mark.parametrize(("display", "num_opened"), [("", 0), (":0", 1)])
def test_a_browser_is_opened_where_there_is_a_display(run, monkeypatch, display, num_opened):
    pytest.importorskip("gradio", reason="an optional package of the page")
    opened, done = [], threading.Event()
    monkeypatch.setattr("webbrowser.open", lambda address: (opened.append(address), done.set()))
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setenv("DISPLAY", display)
    assert run("--web", "--port=0", "--open_browser")[0] == 0
    assert not num_opened or done.wait(20)
    assert len(opened) == num_opened


def test_a_real_server_starts_answers_and_stops(tiny, monkeypatch):
    """The whole way once: flags, socket, uvicorn, shutdown."""
    monkeypatch.setattr(chat, "load_model", lambda *_, **__: (tiny, tiny.processor))
    seen = {}
    ready = uvicorn.Server.startup

    async def startup(self, sockets=None):
        await ready(self, sockets)
        port = sockets[0].getsockname()[1]

        def ask():
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=20) as response:
                seen["body"] = response.read()
            self.should_exit = True

        threading.Thread(target=ask).start()

    monkeypatch.setattr(uvicorn.Server, "startup", startup)
    assert chat.main(["--version=any", "--serve", "--port=0"]) == 0
    assert b'"status":"ok"' in seen["body"]
