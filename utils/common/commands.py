"""How a command ends: one line for a user's mistake, a traceback for a defect."""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import wraps
from typing import NoReturn

from model.errors import MisfitError, UserError
from model.write_errors import WriteError, writing
from utils.common.help import PageFormatter
from utils.common.stopping import StoppedError, stopped_in_order
from utils.common.terminal import printable

USER_MISTAKE = 2  # exit code


class Parser(argparse.ArgumentParser):
    """A parser for the flags of small commands; its errors are UserErrors, printed as one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message.removeprefix('argument ')}; --help lists the flags")


def script_parser(name: str, about: str) -> Parser:
    """The parser of `python -m NAME`; `about`, the docstring of its module, is what --help says first."""
    return Parser(prog=f"python -m {name}", description=about, formatter_class=PageFormatter)


Main = Callable[[Sequence[str] | None], int | None]


def command(name: str) -> Callable[[Main], Callable[..., int]]:
    """Makes `main(argv)` return an exit code: its own (None is 0), or 2 after one line about what the user did wrong.

    A UserError or an OSError (a file that is not there, a disk that is full) is printed as "NAME: message", once and
    not by every process of a launcher unless it is `for_everybody`; so is a lack of memory. A UserError with an
    `exit_code` of its own ends with that. Output that nobody reads any more ends it quietly, with 141, Ctrl-C with
    one line, SIGTERM and SIGHUP with one line and 128 + their number. Other exceptions are ours, and pass with their
    tracebacks.
    """

    def decorate(main: Main) -> Callable[..., int]:
        @wraps(main)
        def run(argv: Sequence[str] | None = None) -> int:
            prepare_streams()
            is_outermost = False
            try:
                with stopped_in_order() as is_outermost:
                    try:
                        return main(argv) or 0
                    finally:  # --help ends by SystemExit
                        flush_output()
            except StoppedError as stop:
                if not is_outermost:
                    raise
                flush_output_to_nowhere()
                if _is_first_to_say(stop.name):
                    print(f"{name}: stopped by {stop.name}", file=sys.stderr, flush=True)
                return int(str(stop.code))
            except KeyboardInterrupt:
                sys.excepthook = lambda *_: print(f"{name}: interrupted", file=sys.stderr)
                raise  # Python ends by the signal, which a shell shows as 130
            except BrokenPipeError:  # whoever read the output has gone, and has no use for a message
                flush_output_to_nowhere()
                return 128 + signal.SIGPIPE
            except (UserError, OSError, MemoryError) as problem:
                flush_output_to_nowhere()
                text = one_line(problem)
                if isinstance(problem, MemoryError):
                    text = f"the memory does not suffice ({text}); give smaller images, or more memory"
                if getattr(problem, "for_everybody", False) or _is_first_to_say(text):
                    print(f"{name}: {text}", file=sys.stderr, flush=True)
                return getattr(problem, "exit_code", USER_MISTAKE)

        return run

    return decorate


def prepare_streams() -> None:
    """Python has None for a standard stream that was closed, as by `>&-`, which nobody expects: nowhere instead.

    Bytes from a pipe that are no text are read as replacement characters, and no end of the command.
    """
    sys.stdin = sys.stdin or open(os.devnull, encoding="utf-8")  # noqa: SIM115 (as long as the process)
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


def flush_output() -> None:
    """Write what was printed; else Python would tell what hinders it, after everything and as a traceback.

    Raises:
        WriteError: the disk behind it is full.
        BrokenPipeError: nobody reads it any more.
    """
    try:
        with writing("the output"):
            sys.stdout.flush()
    except WriteError as problem:
        if isinstance(problem.__cause__, BrokenPipeError):
            raise problem.__cause__ from None
        raise


def flush_output_to_nowhere() -> None:
    """After an error: what was printed and cannot be written is given up, so that the process ends quietly."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.stdout.flush()


def one_line(problem: Exception) -> str:
    """What went wrong, in one line: libraries write several, and a data loading worker sends its whole traceback."""
    text = str(problem).strip()
    if isinstance(problem, MisfitError):
        return printable(text)  # a table of weights, which stays one
    if isinstance(problem, OSError) and problem.strerror and problem.filename is not None:
        return printable(f"{os.fsdecode(problem.filename)}: {problem.strerror}")
    if "Traceback (most recent call last)" in text:
        kind = type(problem)
        last = text.split("\n")[-1]
        text = last.removeprefix(f"{kind.__module__}.").removeprefix(f"{kind.__name__}: ")
    return printable(" ".join(text.split()))


def _is_first_to_say(text: str) -> bool:
    """Whether this process prints the message, so that the processes of a launcher print it once.

    The processes of a process group ask its store. Before it is initialised all of them fail alike, on the command
    line: the first one of each machine prints.
    """
    dist = sys.modules.get("torch.distributed")  # not imported for this: it takes seconds
    if not (dist and dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return os.environ.get("LOCAL_RANK", os.environ.get("RANK", "0")) in ("0", "-1")
    try:
        store = dist.distributed_c10d._get_default_store()
        return store.add(f"lasagna/said/{text}", 1) == 1
    except RuntimeError:  # the first process, which holds the store, has printed its message and ended
        return dist.get_rank() == 0
