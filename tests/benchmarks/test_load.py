"""The load test of the server, short: nothing is lost or left, and the tally sees what is."""

from __future__ import annotations

import json
import socket
import threading

import pytest

pytest.importorskip("fastapi", reason="an optional package of the server")

from benchmarks.load import __main__ as load
from benchmarks.load.honest import HONEST
from benchmarks.load.wire import Line, LostError, Tally


def test_under_clients_of_all_kinds_nothing_is_lost_or_left(tmp_path, capsys):
    code = load.main(
        ["--quick", "--clients=10", "--seconds=3", "--settle=20", f"--out={tmp_path / 'load.json'}"]
    )
    out = capsys.readouterr().out
    assert code == 0, out
    counts = json.loads((tmp_path / "load.json").read_text())["counts"]
    assert counts.keys() == load.SHARES.keys(), "each kind of client did something"
    assert counts[HONEST]["right"] > 3
    assert "| the server |" in out


def looks(**changes: float) -> load.Look:
    return load.Look(**({"second": 0, "memory_mb": 500, "files": 30, "threads": 10} | changes))


@pytest.mark.parametrize(
    ("after", "message"),
    [
        ({"waiting": 1}, "1 waiting"),
        ({"open": 2}, "2 open"),
        ({"held_bytes": 5}, "5 bytes of bodies"),
        ({"files": 60}, "60 handles"),
        ({"threads": 90}, "90 threads"),
    ],
)
def test_what_is_left_is_a_problem(after, message):
    tally = Tally()
    tally.add(HONEST, "right")
    assert load.problems_of(tally, [looks()], looks(), 1, judge_memory=True) == []
    [problem] = load.problems_of(tally, [looks()], looks(**after), 1, judge_memory=True)
    assert message in problem


def test_lost_wrong_and_uncounted_answers_and_memory_are_problems():
    tally = Tally()
    tally.add(HONEST, "right")
    tally.add(HONEST, "lost", "a stream without its end")
    grown = [looks(), looks(memory_mb=5000)]
    problems = load.problems_of(tally, grown, looks(), 0, judge_memory=True)
    assert [problem[:15] for problem in problems] == ["honest, lost: a", "/metrics counts", "memory grew by "]


@pytest.mark.parametrize(
    "sent", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc", b"HTTP/1.1 200 OK\r\n"]
)
def test_an_answer_that_is_cut_is_lost(sent):
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            client, _ = server.accept()
            client.sendall(sent)
            client.close()

        threading.Thread(target=answer, daemon=True).start()
        with Line(server.getsockname()[1]) as line, pytest.raises(LostError):
            line.read()
