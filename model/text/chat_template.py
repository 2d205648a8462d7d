"""Rendering a tokenizer's chat template, which comes with weights from anywhere: its work is bounded.

A template is a program. transformers runs it in Jinja's sandbox, which keeps it from Python's objects and from files,
but not from loops and texts without end; so it is rendered in a process of its own, which is killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from model.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_SECONDS = 5.0
MAX_BYTES = 2**30  # of memory beyond that of this process
MAX_LETTERS = 1_000_000


class TemplateError(ValueError):
    """A template that fails."""


def rendered(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, Any]], *, add_generation_prompt: bool
) -> str:
    """What the tokenizer's template makes of `messages`; TemplateError when it fails.

    Raises:
        UserError: it exceeds the limits.
    """
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read_end)
        _render_in_child(tokenizer, messages, add_generation_prompt, write_end)
    os.close(write_end)
    try:
        answer = _read_all(read_end, time.monotonic() + MAX_SECONDS)
    finally:
        os.close(read_end)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    try:
        failed, text = json.loads(answer)
    except ValueError:
        raise UserError(
            f"the tokenizer's chat template cannot be used: it takes more than {MAX_SECONDS:g} seconds, "
            f"{MAX_BYTES / 2**30:g} GiB or {MAX_LETTERS:,} letters; use prompt 'llava_v1'"
        ) from None
    if failed:
        raise TemplateError(text)
    return text


def _render_in_child(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[dict[str, Any]],
    add_generation_prompt: bool,
    pipe: int,
) -> NoReturn:
    """Writes [failed, text] as JSON; the process ends here, and runs nothing that its parent would."""
    try:
        with contextlib.suppress(OSError, ValueError):  # where there is no /proc, time is the only limit
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            limit = pages * os.sysconf("SC_PAGE_SIZE") + MAX_BYTES
            resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))
        try:
            text = tokenizer.apply_chat_template(
                list(messages),
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                enable_thinking=False,  # where a template knows it: answers begin at once
            )
            answer = [False, text]
        except Exception as problem:  # templates raise what they like
            answer = [True, str(problem)[:1000] or type(problem).__name__]
        if len(answer[1]) <= MAX_LETTERS:
            content = json.dumps(answer).encode()
            while content:
                content = content[os.write(pipe, content) :]
    finally:
        os._exit(0)


def _read_all(pipe: int, end: float) -> bytes:
    """What comes through a pipe until it is closed or the time is over."""
    parts: list[bytes] = []
    while (left := end - time.monotonic()) > 0 and select.select([pipe], [], [], left)[0]:
        part = os.read(pipe, 2**16)
        if not part:
            return b"".join(parts)
        parts.append(part)
    return b""
