"""Clients that are slow, do not read, or are too many: the server lets go of them, and keeps nothing."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import threading
import time

import pytest

from tests.tiny_weights import noise_image

pytest.importorskip("fastapi", reason="an optional package of the server")
pytest.importorskip("openai", reason="the client that the server is tested with")

from tests.utils.serving.running import Running, data_url
from utils.serving import connection, gate
from utils.serving.batching import Batcher, settle
from utils.serving.jobs import Job, SegmentJob

HEAD = b"POST /v1/segment HTTP/1.1\r\nHost: localhost\r\n"
JSON = b"Content-Type: application/json\r\n"


@pytest.fixture(scope="module")
def server(tiny):
    with Running(tiny) as running:
        yield running


@pytest.fixture
def impatient(monkeypatch):
    """Half a second for everything."""
    for module, name in (
        (connection, "HEAD_SECONDS"),
        (connection, "UNREAD_SECONDS"),
        (gate, "BODY_SECONDS"),
    ):
        monkeypatch.setattr(module, name, 0.5)
    monkeypatch.setattr(connection, "LOOK_SECONDS", 0.1)


def connect(server, *, receive_buffer: int = 0) -> socket.socket:
    client = socket.socket()
    if receive_buffer:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    client.settimeout(20)
    client.connect(("127.0.0.1", server.port))
    return client


def answer(client: socket.socket) -> bytes:
    """A response that is a JSON object."""
    told = b""
    while not told.endswith(b"}"):
        told += client.recv(10_000)
    return told


def is_closed_within(client: socket.socket, seconds: float, *, trickle: bytes = b"") -> bool:
    """Whether the server closes the connection while the client sends a byte now and then."""
    end = time.monotonic() + seconds
    client.settimeout(0.1)
    while time.monotonic() < end:
        try:
            if not client.recv(10_000):
                return True
            continue
        except TimeoutError:
            pass
        except OSError:
            return True
        if trickle:
            client.sendall(trickle[:1])
            trickle = trickle[1:]
    return False


@pytest.mark.parametrize(
    ("at_once", "trickle"),
    [
        (b"", b""),
        (HEAD[:10], HEAD[10:] * 9),
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET /he", b"alth" * 99),
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n" * 99),
        (b"PUT /v1/x HTTP/1.1\r\nHost: evil.example\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n" * 99),
        (HEAD + JSON + b"Content-Length: 5000\r\n\r\n", b"x" * 99),
    ],
    ids=["nothing", "a head", "a second head", "a body that nobody reads", "a refused body", "a body"],
)  # fmt: skip
def test_a_client_that_sends_a_byte_now_and_then_is_let_go(impatient, tiny, at_once, trickle):
    with Running(tiny, hosts=frozenset({"localhost"})) as server, connect(server) as client:
        client.sendall(at_once)
        assert is_closed_within(client, 6, trickle=trickle)


def test_a_client_that_goes_on_asking_is_kept(impatient, server):
    with connect(server) as client:
        for _ in range(14):
            client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b"200 OK" in answer(client)
            time.sleep(0.1)


def test_an_answer_that_nobody_reads_is_given_up(impatient, tiny):
    running = Running(tiny)
    running.listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # of the connections, too
    with running as server:
        with connect(server, receive_buffer=2048) as client:
            ask = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"
            threading.Thread(target=send_all, args=(client, ask * 1000), daemon=True).start()
            end = time.monotonic() + 30
            while (
                client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == 1 and time.monotonic() < end
            ):
                time.sleep(0.05)
            assert time.monotonic() < end, "the server still holds the answer"
        assert server.server.server_state.connections == set()


def send_all(client: socket.socket, content: bytes) -> None:
    with contextlib.suppress(OSError):
        client.sendall(content)


def test_connections_too_many_are_told_and_those_that_are_there_go_on(monkeypatch, tiny):
    monkeypatch.setattr(connection, "MAX_CONNECTIONS", 2)
    with Running(tiny) as server, connect(server) as first, connect(server) as second:
        time.sleep(0.2)
        with connect(server) as third:
            told = answer(third)
        assert told.startswith(b"HTTP/1.1 503")
        assert b"2 connections are open; ask again later" in told
        for client in (first, second):
            client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b"200 OK" in answer(client)


# ------------------------------------------------------------------------------------ bodies


@pytest.mark.parametrize(
    "more", [b"Content-Length: 1000000000\r\n", b"Content-Length: 300000\r\nExpect: 100-continue\r\n"]
)
def test_a_length_beyond_the_limit_is_told_before_the_body_comes(server, more):
    with connect(server) as client:
        client.sendall(HEAD + JSON + more + b"\r\n")
        told = answer(client)
    assert told.startswith(b"HTTP/1.1 413")
    assert b"more than 200,000 bytes" in told


def test_all_bodies_together_have_a_limit(monkeypatch, tiny):
    monkeypatch.setattr(gate, "MAX_HELD", 1)
    monkeypatch.setattr(gate, "BODY_SECONDS", 3.0)
    with Running(tiny) as server, connect(server) as slow:
        slow.sendall(HEAD + JSON + b"Content-Length: 190000\r\n\r\n" + b"x" * 150_000)
        while held(server) < 150_000:
            time.sleep(0.02)
        with connect(server) as other:
            other.sendall(HEAD + JSON + b"Content-Length: 100000\r\n\r\n" + b"x" * 100_000)
            told = answer(other)
        assert told.startswith(b"HTTP/1.1 429")
        assert b"retry-after: 2" in told
        assert answer(slow).startswith(b"HTTP/1.1 408")
        assert held(server) == 0
        assert server.call("/v1/segment", b"x" * 100_000)[0] == 400


def held(server) -> float:
    return metric(server, "lasagna_held_bytes")


def metric(server, name: str) -> float:
    rows = server.call("/metrics")[1].decode().splitlines()
    return next((float(row.rpartition(" ")[2]) for row in rows if row.startswith(f"{name} ")), 0.0)


def test_a_client_that_goes_in_its_body_is_no_failure_of_the_server(tiny):
    with Running(tiny) as server:
        with connect(server) as client:
            client.sendall(HEAD + JSON + b"Content-Length: 5000\r\n\r\nxxx")
            time.sleep(0.2)
        name = 'lasagna_requests_total{path="/v1/segment",status="499"}'
        end = time.monotonic() + 10
        while metric(server, name) < 1 and time.monotonic() < end:
            time.sleep(0.05)
        assert metric(server, name) == 1
        assert metric(server, "lasagna_open") == 1, "the request for the metrics themselves"


# ------------------------------------------------------------------------------------ what waits


def test_those_who_have_gone_take_no_place_in_the_queue(tiny, monkeypatch):
    batcher = Batcher(tiny, max_batch=2, max_waiting=3)
    answered: list[Job] = []
    try:
        monkeypatch.setattr(batcher, "_answer", answered.extend)
        with batcher._changed:
            gone = [SegmentJob(image=noise_image(9, 9), classes=("dog",)) for _ in range(3)]
            for job in gone:
                batcher.submit(job)
                job.withdraw()
            assert batcher.num_waiting == 0
            here = [SegmentJob(image=noise_image(9, 9), classes=("dog",)) for _ in range(2)]
            for job in here:
                batcher.submit(job)
            assert batcher.num_waiting == 2
        end = time.monotonic() + 10
        while len(answered) < 2 and time.monotonic() < end:
            time.sleep(0.01)
        assert answered == here
    finally:
        batcher.close()


def test_an_answer_that_comes_after_its_job_was_withdrawn_or_answered_is_dropped():
    job = SegmentJob(image=noise_image(9, 9), classes=("dog",))
    job.withdraw()
    settle(job, "late")
    assert job.answer.cancelled()
    job = SegmentJob(image=noise_image(9, 9), classes=("dog",))
    settle(job, "first")
    settle(job, "second")
    assert job.answer.result() == "first"


def test_a_head_has_a_limit_also_in_one_piece(server):
    for head in (b"x: " + b"a" * 70_000 + b"\r\n", b"x: a\r\n" * 20_000):
        with connect(server) as client:
            client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + head + b"\r\n")
            told = client.recv(10_000)
            # 400 is h11's, where the head came in pieces.
            assert told.startswith((b"HTTP/1.1 431", b"HTTP/1.1 400")), told
    with connect(server) as client:
        client.sendall(b"GET /health?" + b"a" * 65_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b" 200 " in client.recv(10_000)


class Slow:
    """An app whose answers take a while."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.has_begun = seconds, threading.Event()

    async def __call__(self, scope, receive, send):
        while scope["type"] == "lifespan":
            message = await receive()
            await send({"type": f"{message['type']}.complete"})
            if message["type"] == "lifespan.shutdown":
                return
        if scope["type"] == "http":
            self.has_begun.set()
            await asyncio.sleep(self.seconds)
            await gate.respond(send, 200, "done")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize(("seconds", "status"), [(0.3, b"200"), (60, b"503")])
def test_the_first_signal_ends_in_order(number, seconds, status, monkeypatch):
    monkeypatch.setattr(connection, "GRACE_SECONDS", 1)
    slow, told = Slow(seconds), []
    app = gate.Gate(slow, api_key="", max_bytes=1000, counts=gate.Counts(), paths=frozenset(), hosts=None)
    listener = socket.create_server(("127.0.0.1", 0))

    def ask() -> None:
        with socket.create_connection(listener.getsockname(), timeout=20) as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            slow.has_begun.wait(20)
            os.kill(os.getpid(), number)
            told.append(client.recv(10_000))

    thread = threading.Thread(target=ask)
    thread.start()
    connection.server_of(app).run(sockets=[listener])  # returns: exit code 0
    thread.join()
    assert told[0].startswith(b"HTTP/1.1 " + status)


def test_the_second_signal_ends_at_once(monkeypatch):
    codes: list[int] = []
    monkeypatch.setattr(connection, "end_now", codes.append)
    server = connection.server_of(Slow(1))
    server.handle_exit(signal.SIGTERM, None)
    assert server.should_exit
    assert codes == []
    server.handle_exit(signal.SIGTERM, None)
    assert codes == [143]


def test_a_class_query_has_a_limit_of_names(server, monkeypatch):
    monkeypatch.setattr("utils.serving.jobs.MAX_CLASSES", 5)
    content = {"image": data_url(noise_image(9, 9)), "classes": [f"c{n}" for n in range(6)]}
    assert server.error("/v1/segment", content) == (400, "6 classes at once, of at most 5; ask for fewer")
