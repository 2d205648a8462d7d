"""Reading the pickles of referring data sets without executing code."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any, NoReturn

from model.errors import UserError


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
        return _PlainUnpickler(io.BytesIO(Path(path).read_bytes()), encoding="utf-8").load()
    except OSError:
        raise
    except Exception as problem:  # a damaged pickle raises anything
        raise UserError(
            f"{path} is refused: {problem}; it may hold only lists, dictionaries, strings and numbers"
        ) from None
