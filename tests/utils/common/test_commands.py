"""How commands end: one line for a user's mistake, a traceback for ours."""

from __future__ import annotations

import sys

import pytest
import torch.distributed as dist

from model.errors import UserError
from model.strict_loading import MisfitError
from tests.two_processes import fork_two
from utils.common.commands import command, one_line


def failing(problem: BaseException):
    @command("tool.py")
    def main(argv):
        raise problem

    return main


@pytest.mark.parametrize(
    ("problem", "line"),
    [
        (UserError("--lr must be > 0,\n  got -1"), "tool.py: --lr must be > 0, got -1"),
        (FileNotFoundError("--image a.jpg does not exist"), "tool.py: --image a.jpg does not exist"),
        (
            PermissionError(13, "Permission denied", "/data/a b.jpg"),
            "tool.py: /data/a b.jpg: Permission denied",
        ),
        (OSError(28, "No space left on device"), "tool.py: [Errno 28] No space left on device"),
    ],
)
def test_what_a_user_did_is_one_line_and_exit_code_2(problem, line, capsys):
    assert failing(problem)([]) == 2
    assert capsys.readouterr().err == line + "\n"


@pytest.mark.parametrize(
    "problem", [ValueError("operands could not be broadcast"), KeyError("seg"), RuntimeError("x")]
)
def test_what_we_broke_keeps_its_traceback(problem):
    with pytest.raises(type(problem)):
        failing(problem)([])


def test_a_command_that_ends_well_returns_its_exit_code_and_gets_its_arguments():
    main = command("tool.py")(lambda argv: len(argv) or None)
    assert (main([]), main(["--all"])) == (0, 1)


@pytest.mark.parametrize(
    ("environment", "is_said"),
    [
        ({}, True),
        ({"LOCAL_RANK": "0", "RANK": "4"}, True),
        ({"LOCAL_RANK": "1", "RANK": "1"}, False),
        ({"RANK": "1"}, False),
    ],
)
def test_only_the_first_process_of_a_machine_speaks_before_they_meet(
    environment, is_said, monkeypatch, capsys
):
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert failing(UserError("no"))([]) == 2
    assert bool(capsys.readouterr().err) == is_said


@command("tool.py")
def tool(argv):
    rank, store, only = int(argv[0]), argv[1], argv[2]
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    if only in ("both", argv[0]):
        raise UserError("the disk of this process is broken")
    dist.barrier()


def start_tool(rank: int, *arguments: str) -> None:
    sys.exit(tool([str(rank), *arguments]))


@pytest.mark.parametrize("only", ["both", "1"])
def test_processes_that_have_met_say_a_message_once_whoever_meets_it(only, tmp_path):
    ended = fork_two(start_tool, str(tmp_path / "store"), only)
    assert ended[1].code == 2
    printed = "".join(one.printed for one in ended)
    assert printed.count("tool.py: the disk of this process is broken") == 1


def test_a_workers_traceback_and_a_table_of_weights():
    sent = "Caught it.\nTraceback (most recent call last):\n  File x\nmodel.errors.UserError: a.png: bad"
    assert one_line(UserError(sent)) == "a.png: bad"
    assert one_line(MisfitError("do not fit\na   missing")) == "do not fit\na   missing"
