"""The server of chat.py under clients of all kinds: nothing lost, nothing mixed up, nothing left behind.

    python -m benchmarks.load                       # 50 clients, 2 minutes, the toy assistant
    python -m benchmarks.load --version FOLDER --seconds 600 --clients 100
    python -m benchmarks.load --quick               # in this process, seconds, no patience

Half of the clients want answers: in words, streamed, about classes, four requests at once on one connection; each
knows what it has to be answered. The others die in the head, in the body, while they wait or in a stream; send a byte
now and then; do not read; send 1 GB; or talk nonsense. When all are gone the server has to be as it was: no request
open, nothing waiting, no handle or thread more. Exit code 1 if an answer was lost or wrong, or anything is left.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}

import numpy as np

from benchmarks import ROOT, TOY, script_parser
from benchmarks.load.honest import CHAT, HONEST, SEGMENT, Honest, Target
from benchmarks.load.others import DYING, HUGE, KINDS, ODD, SLOW, UNREAD
from benchmarks.load.wire import Line, Tally, request

ASSISTANT = TOY / "assistant"
SHARES = {HONEST: 26, DYING: 8, SLOW: 6, UNREAD: 3, HUGE: 3, ODD: 4}  # of 50 clients
MEMORY_BAR = 1_000.0  # MB above an idle server that has answered each kind of request
FILES_BAR, THREADS_BAR = 3, 48  # the pools of anyio: 40 threads, which stay for a while
OUTCOMES = ("right", "wrong", "lost", "told to wait", "as it should be", "unexpected", "cut off", "left",
            "status 408", "status 413", "status 429")  # fmt: skip


@dataclass(frozen=True)
class Look:
    """What the server's process takes at one moment."""

    second: float
    memory_mb: float
    files: int
    threads: int
    waiting: float = 0
    open: float = 0
    held_bytes: float = 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = script_parser("benchmarks.load", __doc__)
    parser.add_argument("--version", default=str(ASSISTANT), help="the model that is served")
    parser.add_argument("--clients", type=int, default=50, help="clients at the same time")
    parser.add_argument("--seconds", type=float, default=120.0, help="how long they ask")
    parser.add_argument(
        "--settle", type=float, default=60.0, help="seconds until everything has to be given back"
    )
    parser.add_argument("--seed", type=int, default=0, help="another seed draws other requests")
    parser.add_argument(
        "--quick", action="store_true", help="a server in this process; its memory is not judged"
    )
    parser.add_argument("--out", default="", help="JSON file for the results")
    options = parser.parse_args(argv)
    with in_this_process() if options.quick else started(options.version) as (pid, port):
        name = models(port)
        target = Target.of(port, name)
        tally, looks, slowest = load(target, pid, options)
        after = settle(target, pid, options.settle, looks[0])
        answered = num_answered(metrics(port))
    problems = problems_of(tally, looks, after, answered, judge_memory=not options.quick)
    print(clients_table(tally, options.clients), server_table(looks, after), sep="\n\n")
    print(f"\n{tally.num('right')} right answers in {options.seconds:g} s, the slowest after {slowest:.1f} s; "
          f"the server counts {answered} of all clients")  # fmt: skip
    print(*(f"PROBLEM: {one}" for one in problems), sep="\n")
    if options.out:
        content = {
            "counts": tally.counts,
            "looks": [asdict(one) for one in (*looks, after)],
            "problems": problems,
        }
        Path(options.out).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 1 if problems else 0


@contextmanager
def started(version: str) -> Iterator[tuple[int, int]]:
    """`chat.py --serve` in a process of its own: its id and its port."""
    command = [sys.executable, "chat.py", f"--version={version}", "--serve", "--port=0"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            for row in process.stdout:
                if found := re.search(r"at http://127\.0\.0\.1:(\d+)/v1", row):
                    break
            else:
                raise RuntimeError("the server did not start")
            yield process.pid, int(found[1])
        finally:
            process.terminate()
            process.wait(60)


@contextmanager
def in_this_process() -> Iterator[tuple[int, int]]:
    """A server with the toy world's base weights, whose patience is short."""
    from benchmarks.models import build
    from benchmarks.serving import LocalServer
    from utils.serving import connection, gate

    patience = {
        (connection, "HEAD_SECONDS"): 1.0,
        (connection, "UNREAD_SECONDS"): 1.5,
        (gate, "BODY_SECONDS"): 1.5,
    }
    before = {(module, name): getattr(module, name) for module, name in patience}
    for (module, name), seconds in patience.items():
        setattr(module, name, seconds)
    try:
        with LocalServer(build("tiny")[0], num_tokens=6, num_clients=8) as server:
            yield os.getpid(), server.listener.getsockname()[1]
    finally:
        for (module, name), seconds in before.items():
            setattr(module, name, seconds)


def load(target: Target, pid: int, options: argparse.Namespace) -> tuple[Tally, list[Look], float]:
    """All clients for so many seconds; what came of them, what the server took, and the slowest right answer."""
    tally, stop = Tally(), threading.Event()
    honest: list[Honest] = []
    threads = []
    for number, kind in enumerate(kinds_of(options.clients)):
        if kind == HONEST:
            honest.append(Honest(target, tally, stop, seed=1000 * options.seed + number))
            threads.append(threading.Thread(target=honest[-1].run, daemon=True))
        else:
            rng = np.random.default_rng((options.seed, number))
            threads.append(threading.Thread(target=KINDS[kind], args=(target, tally, stop, rng), daemon=True))
    begin = time.monotonic()
    looks = [look_at(target.port, pid, begin)]
    for thread in threads:
        thread.start()
    while time.monotonic() - begin < options.seconds:
        time.sleep(0.5)
        looks.append(look_at(target.port, pid, begin))
    stop.set()
    for thread in threads:
        thread.join(150)
    for _ in range(sum(thread.is_alive() for thread in threads)):
        tally.add(HONEST, "lost", "a client still waits")
    return tally, looks, max((one.slowest for one in honest), default=0.0)


def kinds_of(num_clients: int) -> list[str]:
    """The kind of each client, one of each at least."""
    total = sum(SHARES.values())
    counts = {kind: max(1, round(share * num_clients / total)) for kind, share in SHARES.items()}
    counts[HONEST] = max(1, num_clients - sum(counts.values()) + counts[HONEST])
    return [kind for kind, count in counts.items() for _ in range(count)]


def settle(target: Target, pid: int, seconds: float, before: Look) -> Look:
    """Waits until nothing is open any more, or so many seconds; what the server takes then."""
    begin = time.monotonic()
    while True:
        now = look_at(target.port, pid, begin)
        is_idle = now.waiting == 0 and now.open <= 1 and now.files <= before.files + FILES_BAR
        if is_idle or now.second > seconds:
            return now
        time.sleep(0.5)


def look_at(port: int, pid: int, begin: float) -> Look:
    """What the server takes now; its own counts through a connection of their own."""
    found = metrics(port)
    memory = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    return Look(
        second=round(time.monotonic() - begin, 1),
        memory_mb=round(memory, 1),
        files=len(os.listdir(f"/proc/{pid}/fd")),
        threads=len(os.listdir(f"/proc/{pid}/task")),
        waiting=found["lasagna_waiting"],
        open=found["lasagna_open"],
        held_bytes=found["lasagna_held_bytes"],
    )


def metrics(port: int) -> dict[str, float]:
    """What /metrics shows: name with labels -> value."""
    with Line(port) as line:
        line.send(request("GET", "/metrics", b"", "Connection: close"))
        text = line.read().body.decode()
    rows = [row.rpartition(" ") for row in text.splitlines() if row and not row.startswith("#")]
    return {name: float(value) for name, _, value in rows}


def models(port: int) -> str:
    """The name of the model that is served."""
    with Line(port) as line:
        line.send(request("GET", "/v1/models"))
        name: str = line.read().json()["data"][0]["id"]
    return name


def num_answered(found: dict[str, float]) -> int:
    """Requests that the server counts as answered."""
    return round(
        sum(found.get(f'lasagna_requests_total{{path="{path}",status="200"}}', 0) for path in (CHAT, SEGMENT))
    )


def problems_of(
    tally: Tally, looks: Sequence[Look], after: Look, answered: int, *, judge_memory: bool
) -> list[str]:
    """What should not be."""
    found = list(tally.details) if tally.num("wrong", "lost", "unexpected") else []
    if not tally.num("right"):
        found.append("no right answer")
    if after.waiting or after.open > 1 or after.held_bytes:
        found.append(
            f"left: {after.waiting:g} waiting, {after.open:g} open, {after.held_bytes:g} bytes of bodies"
        )
    if after.files > looks[0].files + FILES_BAR or after.threads > looks[0].threads + THREADS_BAR:
        found.append(f"left: {after.files} handles and {after.threads} threads, {looks[0].files} and "
                     f"{looks[0].threads} before")  # fmt: skip
    if answered < tally.num("right"):
        found.append(f"/metrics counts {answered} answers, clients got {tally.num('right')}")
    grown = max(look.memory_mb for look in looks) - looks[0].memory_mb
    if judge_memory and grown > MEMORY_BAR:
        found.append(f"memory grew by {grown:.0f} MB")
    return found


def clients_table(tally: Tally, num_clients: int) -> str:
    """A row for each kind of client, a column for each outcome."""
    numbers = {kind: kinds_of(num_clients).count(kind) for kind in SHARES}
    names = [name for name in OUTCOMES if tally.num(name) or name in ("right", "wrong", "lost", "unexpected")]
    lines = [f"| clients | | {' | '.join(names)} |", f"|---|---:|{'---:|' * len(names)}"]
    for kind, number in numbers.items():
        counts = tally.counts.get(kind, {})
        lines.append(f"| {kind} | {number} | {' | '.join(str(counts.get(name, '')) for name in names)} |")
    return "\n".join(lines)


def server_table(looks: Sequence[Look], after: Look) -> str:
    """What the server took: before, at most, in the second half, afterwards."""
    half = looks[len(looks) // 2 :]
    lines = [
        "| the server | before | most | most in the second half | afterwards |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, label in {"memory_mb": "resident memory, MB", "files": "open handles", "threads": "threads",
                        "waiting": "waiting requests", "open": "requests read or answered",
                        "held_bytes": "bytes of their bodies"}.items():  # fmt: skip
        most, later = (max(getattr(look, name) for look in part) for part in (looks, half))
        row = (getattr(looks[0], name), most, later, getattr(after, name))
        lines.append(f"| {label} | {' | '.join(f'{value:,.0f}' for value in row)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
