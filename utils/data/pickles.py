"""Reading the pickles of referring data sets without executing code."""

from __future__ import annotations

import io
import pickle
import pickletools
from pathlib import Path
from typing import Any, NoReturn

from model.errors import UserError
from utils.data.index.sources import read_source

# Opcode -> bytes of its argument, or below zero for what `pickletools` calls arguments that tell their own length.
_ARGUMENTS = {ord(op.code): op.arg.n if op.arg else 0 for op in pickletools.opcodes}
_NUM_LINES = {ord("c"): 2, ord("i"): 2}  # GLOBAL, INST; others that end with a line have one
_LENGTH_BYTES = {
    pickletools.TAKEN_FROM_ARGUMENT1: 1,
    pickletools.TAKEN_FROM_ARGUMENT4: 4,
    pickletools.TAKEN_FROM_ARGUMENT4U: 4,
    pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}
_LONG_BINPUT, _PUT, _STOP, _FRAME = ord("r"), ord("p"), ord("."), 0x95
# Opcode -> bytes with its argument, where these are few and always as many; 0 for all that has to be looked at.
_STEPS = [
    1 + _ARGUMENTS[code]
    if _ARGUMENTS.get(code, -1) >= 0 and code not in (_LONG_BINPUT, _PUT, _STOP, _FRAME)
    else 0
    for code in range(256)
]


def _check_sizes(content: bytes) -> None:
    """UnpicklingError for an entry or a memo index larger than the file.

    The unpickler of CPython allocates what they announce: 34 GB for the index 2^31, in six bytes.
    """
    position, end = 0, len(content)
    while position < end:
        code = content[position]
        if (step := _STEPS[code]) and position + step <= end:  # nearly all of them
            position += step
            continue
        if code not in _ARGUMENTS:
            raise pickle.UnpicklingError(f"byte {position} is no opcode")
        start, size = position + 1, _ARGUMENTS[code]
        index = 0
        if size == pickletools.UP_TO_NEWLINE:
            position = start
            for _ in range(_NUM_LINES.get(code, 1)):
                position = content.find(b"\n", position) + 1
                if position == 0:
                    raise pickle.UnpicklingError("it is cut off")
            if code == _PUT:
                text = content[start : position - 1]
                index = int(text) if len(text) < 20 and text.isdigit() else end
        elif size < 0:
            width = _LENGTH_BYTES[size]
            size = int.from_bytes(content[start : start + width], "little")
            position = start + width + size
        else:
            position = start + size
            if code == _LONG_BINPUT:
                index = int.from_bytes(content[start:position], "little")
            elif code == _FRAME and int.from_bytes(content[start:position], "little") > end:
                raise pickle.UnpicklingError("a frame is larger than the file")
        if position > end or index >= end > 0:
            what = f"memo index {index}" if index else f"entry of {size} bytes"
            raise pickle.UnpicklingError(f"at byte {start - 1} is a {what}, in a file of {end} bytes")
        if code == _STOP:
            return


class _PlainUnpickler(pickle.Unpickler):
    """Allows containers, strings, numbers and None; everything else in a pickle is looked up by name and refused."""

    def find_class(self, module_name: str, global_name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"it names {module_name}.{global_name}")

    def persistent_load(self, pid: Any) -> NoReturn:
        raise pickle.UnpicklingError(f"it names the persistent object {pid!r}")


def load_plain_pickle(path: str | Path) -> Any:
    """The object in a pickle of plain containers, strings and numbers.

    Raises UserError naming the file when the pickle holds anything else, such as a function to be called, or is
    damaged. Nothing that the file names is imported.
    """
    try:
        content = read_source(path)
        _check_sizes(content)
        return _PlainUnpickler(io.BytesIO(content), encoding="utf-8").load()
    except (OSError, UserError):
        raise
    except Exception as problem:  # a damaged pickle raises anything
        raise UserError(
            f"{path} is refused: {problem}; it may hold only lists, dictionaries, strings and numbers"
        ) from None
