"""Processes that die or never come are named by the others, which end; without a model."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
import torch.distributed as dist

from model.errors import UserError
from tests.commands import REPOSITORY
from utils.common import peers
from utils.common.peers import LostError, Peers

SCENES = """
import os, signal, sys, time
from datetime import timedelta
import torch, torch.distributed as dist
from utils.common.commands import command
from utils.common.rendezvous import meet
from utils.common import peers
from utils.common.peers import Peers

peers.BEAT, peers.GRACE = 0.4, 3.0

def train(rank, victim, deed):
    store = meet(20)
    dist.init_process_group("gloo", timeout=timedelta(minutes=30))
    step = 0
    with Peers(store, 20, command="train_ds.py", cure="Go on") as watch:
        watch.where = lambda: f"in step {step}"
        while step < 40:
            step += 1
            dist.all_reduce(torch.ones(1))
            if step == 7:
                time.sleep(1.5)
            if step == 7 and rank == victim:
                deed()
            if step == 7 and hangs:  # as NCCL's collectives do: no error comes from them
                time.sleep(60)

def start(rank, victim=None, deed=lambda: None, alone=False):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    if alone:
        command("train_ds.py")(lambda _: meet(2) and None)()
        return 4
    return command("train_ds.py")(lambda _: train(rank, victim, deed))()

def fail():
    raise ZeroDivisionError("the seventh step")

def stop():
    os.kill(os.getpid(), signal.SIGKILL)

hangs = False
SCENES = {
    "killed": [(0, 1, stop), (1, 1, stop)],
    "first killed": [(0, 0, stop), (1, 0, stop)],
    "fails": [(0, 1, fail), (1, 1, fail)],
    "hangs": [(0, 1, stop), (1, 1, stop)],
    "well": [(0,), (1,)],
    "one absent": [(0, None, None, True)],
    "first absent": [(1, None, None, True)],
}
os.environ |= {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
for number, (name, processes) in enumerate(SCENES.items()):
    if sys.argv[2:] and name not in sys.argv[2:]:
        continue
    os.environ["MASTER_PORT"] = str(int(sys.argv[1]) + number)
    hangs, began, children = name == "hangs", time.monotonic(), []
    for one in processes:
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            code = 1
            try:
                code = start(*one)
            except ZeroDivisionError:
                pass
            finally:
                os._exit(code)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    print(f"scene {name}: {codes} {time.monotonic() - began:.1f}", file=sys.stderr, flush=True)
"""


@pytest.fixture(scope="module")
def scenes() -> dict[str, tuple[list[int], float, str]]:
    """What two processes came to in each scene: exit codes, seconds, what they said."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    for name in ("RANK", "LOCAL_RANK"):
        environment.pop(name, None)
    done = subprocess.run(
        [sys.executable, "-c", SCENES, str(port)],
        cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found, said = {}, []
    for line in done.stderr.splitlines():
        if line.startswith("scene "):
            name, _, rest = line.removeprefix("scene ").partition(": ")
            codes, _, seconds = rest.rpartition(" ")
            found[name] = (json.loads(codes), float(seconds), "\n".join(said))
            said = []
        else:
            said.append(line)
    return found


@pytest.mark.parametrize("name", ["killed", "first killed", "hangs"])
def test_a_process_that_is_killed_ends_the_others_with_its_name(name, scenes):
    codes, seconds, said = scenes[name]
    victim = 0 if name == "first killed" else 1
    assert codes[victim] == -9
    assert codes[1 - victim] == 4
    assert seconds < 40
    assert "Traceback" not in said
    lines = [line for line in said.splitlines() if line.startswith("train_ds.py: ")]
    assert len(lines) == 1
    for part in (
        f"rank {victim} (host {socket.gethostname()}, pid ",
        "last heard of in step 7",
        "has died",
        f"rank {1 - victim} noticed",
        "dmesg",
        "Go on",
    ):
        assert part in lines[0]


def test_the_reason_of_a_process_that_fails_is_told_by_the_others(scenes):
    codes, _, said = scenes["fails"]
    assert codes == [4, 1]
    assert "rank 1 (host " in said
    assert "ended: ZeroDivisionError: the seventh step" in said


def test_a_process_that_does_not_come_is_named(scenes):
    for name, seconds in (("one absent", 2), ("first absent", 2)):
        codes, took, said = scenes[name]
        assert codes == [4]
        assert took < seconds + 10
        assert f"within {seconds} seconds, --rank_timeout" in said
    assert "rank 1 of 2 did not come" in scenes["one absent"][2]
    assert "here: rank 0 (host " in scenes["one absent"][2]
    assert "rank 1 of 2 (host " in scenes["first absent"][2]
    assert "MASTER_ADDR is its host" in scenes["first absent"][2]


def test_processes_that_end_well_are_left_alone(scenes):
    assert scenes["well"][0] == [0, 0]
    assert "train_ds.py" not in scenes["well"][2]


# ---------------------------------------------------------------------------- in one process


@pytest.fixture
def watch(monkeypatch) -> Iterator[Peers]:
    """What rank 2 of 3 makes of rank 0, which it watches; rank 0 is alive, on another machine."""
    monkeypatch.setattr(dist, "get_rank", lambda: 2)
    monkeypatch.setattr(dist, "get_world_size", lambda: 3)
    watch = Peers(dist.HashStore(), 0.2, command="train_ds.py", cure="Go on")
    # Its thread would end this process some seconds after the verdict.
    monkeypatch.setattr(peers, "end_now", lambda code: None)
    tell(watch, beat=1)
    yield watch
    watch._ended.set()


def tell(watch: Peers, **changes: object) -> None:
    told = {"rank": 0, "host": "node1", "pid": 1, "place": "node1", "start": "then", "where": "at its start",
            "beat": 1, "state": "runs"}  # fmt: skip
    watch._store.set("0", json.dumps(told | changes))


def test_silence_counts_only_after_the_timeout(watch):
    assert watch._look() is None
    time.sleep(0.3)
    tell(watch, beat=2, where="in step 4")
    assert watch._look() is None
    time.sleep(0.3)
    lost = watch._look()
    assert (
        "rank 0 (host node1, pid 1, last heard of in step 4) has been silent for 0 seconds (--rank_timeout)"
        in lost
    )
    watch._timeout = None
    assert watch._look() is None


def test_an_error_of_a_connection_waits_for_the_name_of_who_is_silent(watch, monkeypatch):
    monkeypatch.setattr(peers, "BEAT", 0.1)
    with pytest.raises(LostError, match=r"rank 0 .host node1, pid 1, .* has been silent"), watch:
        raise RuntimeError("Connection closed by peer [10.0.0.1]:4000")


def test_who_has_ended_well_may_be_silent(watch):
    tell(watch, state="done")
    time.sleep(0.3)
    assert watch._look() is None


def test_what_another_process_found_counts(watch):
    watch._store.set("lost", "rank 1 (host node2, pid 3, in step 4) has died")
    assert watch._look().startswith("rank 1 (host node2")


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("DataLoader worker (pid 77) is killed by signal: Killed. ", "(pid 77) of rank 0"),
        ("DataLoader worker (pid(s) 77, 78) exited unexpectedly", "(pid 77, 78) of rank 0"),
    ],
)
def test_a_loading_process_that_dies_is_named_with_what_to_do(message, told):
    watch = Peers(None, None, command="train_ds.py", cure="Go on")
    watch.where = lambda: "in step 5"
    with pytest.raises(LostError) as caught, watch:
        raise RuntimeError(message)
    for part in (told, "in step 5", "--workers", "/dev/shm"):
        assert part in str(caught.value)
    assert caught.value.exit_code == 4


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), UserError("--lr"), KeyboardInterrupt()])
def test_other_errors_pass(error, watch, monkeypatch):
    monkeypatch.setattr(peers, "GRACE", 0.0)
    with pytest.raises(type(error)), watch:
        raise error
    assert json.loads(watch._store.get("2"))["state"].startswith(f"ended: {type(error).__name__}: ")
