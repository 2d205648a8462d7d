"""Processes and devices."""

from __future__ import annotations

import socket

import pytest
import torch
import torch.distributed as dist

from model.errors import UserError
from utils.common import distributed as ours
from utils.common.distributed import (
    device_of,
    dtype_of,
    is_main_process,
    rendezvous,
    seed_of_micro_batch,
    set_launch_environment,
    world_size,
)
from utils.common.processes import LAUNCH_VARIABLES


@pytest.fixture
def no_launcher(monkeypatch):
    for name in LAUNCH_VARIABLES:
        monkeypatch.setenv(name, "")  # so that what is set in the test is undone
        monkeypatch.delenv(name)
    return monkeypatch


def test_precisions_are_dtypes():
    assert [dtype_of(name) for name in ("fp32", "bf16", "fp16")] == [
        torch.float32,
        torch.bfloat16,
        torch.float16,
    ]
    with pytest.raises(ValueError, match="unknown precision 'int8'; known: fp32, bf16, fp16"):
        dtype_of("int8")


def test_each_process_has_its_own_gpu_where_there_are_any(no_launcher):
    assert device_of() == torch.device("cpu")
    no_launcher.setattr(torch.cuda, "is_available", lambda: True)
    assert device_of() == torch.device("cuda", 0)
    no_launcher.setenv("LOCAL_RANK", "3")
    assert device_of() == torch.device("cuda", 3)


def test_plain_python_is_one_process_of_one(no_launcher):
    import os

    set_launch_environment()
    assert [os.environ[name] for name in LAUNCH_VARIABLES[:4]] == ["0", "0", "1", "127.0.0.1"]
    assert 1024 <= int(os.environ["MASTER_PORT"]) < 65536


def test_what_a_launcher_set_stays(no_launcher):
    import os

    no_launcher.setenv("RANK", "5")
    set_launch_environment()
    assert os.environ["RANK"] == "5"
    assert "WORLD_SIZE" not in os.environ


def test_a_micro_batch_draws_the_same_in_whichever_process_and_no_other_does(monkeypatch):
    def seeds(seed: int, rank: int, size: int) -> dict[tuple[int, int], int]:
        monkeypatch.setattr(dist, "is_initialized", lambda: True)
        monkeypatch.setattr(dist, "get_rank", lambda: rank)
        monkeypatch.setattr(dist, "get_world_size", lambda: size)
        return {
            (step, number * size + rank): seed_of_micro_batch(seed, step, number)
            for step in range(20)
            for number in range(4 // size)
        }

    alone = seeds(0, 0, 1)
    assert seeds(0, 0, 2) | seeds(0, 1, 2) == alone
    assert len({*alone.values(), *seeds(1, 0, 1).values()}) == 160
    torch.manual_seed(max(alone.values()))


def test_without_a_process_group_there_is_one_process(monkeypatch):
    monkeypatch.setattr(dist, "is_initialized", lambda: False)
    assert is_main_process()
    assert world_size() == 1


def test_a_group_is_joined_only_when_a_launcher_started_several_processes(no_launcher):
    calls = []
    no_launcher.setattr(dist, "is_initialized", lambda: False)
    no_launcher.setattr(dist, "init_process_group", lambda backend: calls.append(f"join {backend}"))
    no_launcher.setattr(dist, "destroy_process_group", lambda: calls.append("leave"))
    words = {"command": "test_sem.py", "cure": "Start again"}
    no_launcher.setattr(ours, "meet", lambda seconds: calls.append(f"meet within {seconds}"))
    with ours.distributed(50, **words) as rank:
        assert rank == 0
    assert calls == []
    no_launcher.setenv("WORLD_SIZE", "2")

    def fail() -> None:
        with ours.distributed(50, **words):
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert calls == ["meet within 50", "join gloo", "leave"]
    no_launcher.setattr(dist, "is_initialized", lambda: True)
    no_launcher.setattr(dist, "get_rank", lambda: 1)
    with ours.distributed(50, **words) as rank:  # it existed before, and stays
        assert rank == 1
    assert calls == ["meet within 50", "join gloo", "leave"]


def test_a_port_in_use_is_one_line_that_names_it(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setenv("MASTER_PORT", str(port))
        with pytest.raises(UserError, match=rf"port {port} is in use.*--master_port=PORT"), rendezvous():
            dist.TCPStore("127.0.0.1", port, world_size=2, is_master=True)
