"""How commands end: one line for a user's mistake, a traceback for ours."""

from __future__ import annotations

import os
import sys
import tempfile

import pytest
import torch.distributed as dist

from model.errors import MisfitError, UserError
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
        (
            MemoryError("Unable to allocate 2 GiB"),
            "tool.py: the memory does not suffice (Unable to allocate 2 GiB); give smaller images, or more memory",
        ),
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


def end_of(main, stream, *, number: int = 1) -> tuple[int, str]:
    """Exit code and stderr of a command whose stream `number` is `stream` (None: closed), by Python's end."""
    with tempfile.TemporaryFile() as errors:
        pid = os.fork()
        if pid == 0:
            code = 99
            try:
                os.dup2(errors.fileno(), 2)
                sys.stderr = os.fdopen(2, "w")
                name, mode = ("stdin", "r") if number == 0 else ("stdout", "w")
                os.close(number)
                if stream is not None:
                    os.dup2(stream, number)
                setattr(sys, name, None if stream is None else os.fdopen(number, mode))
                code = main([])
                sys.stdout.flush()
            except SystemExit as end:
                code = end.code
            except BaseException:
                sys.excepthook(*sys.exc_info())
            finally:
                sys.stderr.flush()
                os._exit(code)
        status = os.waitpid(pid, 0)[1]
        errors.seek(0)
        return os.waitstatus_to_exitcode(status), errors.read().decode()


@command("tool.py")
def talking(argv):
    print("much " * 100_000)


@command("tool.py")
def helping(argv):
    print("some")
    raise SystemExit(0)


@command("tool.py")
def mistaken(argv):
    print("some")
    raise UserError("--lr is wrong")


@command("tool.py")
def asking(argv):
    return len(sys.stdin.read())


@pytest.mark.parametrize("main", [talking, helping, mistaken])
def test_output_that_cannot_be_written_is_told_once_or_not_at_all(main):
    reader, writer = os.pipe()
    os.close(reader)
    code, told = end_of(main, writer)
    assert (code, told) == (141, "")
    with open("/dev/full", "wb") as full:
        code, told = end_of(main, full.fileno())
    assert code == 2
    assert told.startswith("tool.py: ")
    assert "No space left on device" in told
    assert told.count("\n") == 1


def test_streams_that_are_closed_are_nowhere():
    assert end_of(talking, None) == (0, "")
    assert end_of(mistaken, None) == (2, "tool.py: --lr is wrong\n")
    assert end_of(asking, None, number=0) == (0, "")


def test_bytes_that_are_no_text_are_read_as_such():
    reader, writer = os.pipe()
    os.write(writer, b"\xff\xfe:quit")
    os.close(writer)
    assert end_of(asking, reader, number=0) == (7, "")


def test_an_interrupt_is_one_line_at_pythons_end():
    reader, writer = os.pipe()
    assert end_of(failing(KeyboardInterrupt()), writer) == (99, "tool.py: interrupted\n")
    os.close(reader)


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
