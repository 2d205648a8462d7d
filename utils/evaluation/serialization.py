"""Records of finished samples as JSON and back: exactly, and without executing anything from the file.

JSON has no arrays, bytes or tuples, so these are objects with one key that starts with "$":

    {"$array": {"dtype": "<i4", "shape": [3], "data": BASE64}}     zlib inside; a NumPy scalar has the shape []
    {"$bytes": BASE64}   {"$tuple": [...]}   {"$map": [[key, value], ...]}
    {"$record": "MaskRecord", "fields": {...}}                     one of the dataclasses in RECORD_KINDS
"""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np

from model.generation.answers import NameCounts
from utils.evaluation.metrics import InstanceRecord, Overlap
from utils.evaluation.protocols import MaskRecord, MultiRecord, ReasonRecord, SemanticRecord, VqaRecord
from utils.reports.best_and_worst import CompressedRow
from utils.reports.drawing import LegendEntry

# The dataclasses that a file may hold: the records of all protocols, and what they consist of.
RECORD_KINDS: tuple[type, ...] = (
    SemanticRecord, InstanceRecord, MaskRecord, ReasonRecord, MultiRecord, VqaRecord, Overlap, NameCounts,
    CompressedRow, LegendEntry,
)  # fmt: skip
KIND_OF_NAME = {kind.__name__: kind for kind in RECORD_KINDS}
PLAIN_DTYPES = "biuf"  # kinds of NumPy dtypes: bool, integer, float


def to_json(value: Any) -> Any:
    """A value made of what json.dumps takes. TypeError for an object of any other kind."""
    if isinstance(value, np.ndarray | np.generic):
        return {"$array": _array_to_json(np.asarray(value))}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, bytes):
        return {"$bytes": base64.b64encode(value).decode("ascii")}
    if isinstance(value, list):
        return [to_json(item) for item in value]
    if isinstance(value, tuple):
        return {"$tuple": [to_json(item) for item in value]}
    if isinstance(value, Mapping):
        if all(isinstance(key, str) and not key.startswith("$") for key in value):
            return {key: to_json(item) for key, item in value.items()}
        return {"$map": [[to_json(key), to_json(item)] for key, item in value.items()]}
    if is_dataclass(value) and type(value) in RECORD_KINDS:
        content = {field.name: to_json(getattr(value, field.name)) for field in fields(value)}
        return {"$record": type(value).__name__, "fields": content}
    raise TypeError(f"a record may not hold a {type(value).__name__}")


def from_json(value: Any) -> Any:
    """The inverse of `to_json`. ValueError for what that does not write."""
    if isinstance(value, list):
        return [from_json(item) for item in value]
    if not isinstance(value, dict):
        return value
    marks = [key for key in value if key.startswith("$")]
    if not marks:
        return {key: from_json(item) for key, item in value.items()}
    try:
        return _READERS[marks[0]](value)
    except (KeyError, TypeError, AttributeError, binascii.Error, zlib.error) as problem:
        raise ValueError(f"no record of ours: {marks[0]} ({problem!r})") from None


def _array_to_json(array: np.ndarray) -> dict[str, Any]:
    if array.dtype.kind not in PLAIN_DTYPES:
        raise TypeError(f"a record may not hold an array of {array.dtype}")
    data = zlib.compress(np.ascontiguousarray(array).tobytes(), 1)
    return {
        "dtype": array.dtype.str,
        "shape": list(array.shape),
        "data": base64.b64encode(data).decode("ascii"),
    }


def _array_from_json(value: Mapping[str, Any]) -> Any:
    content = value["$array"]
    dtype = np.dtype(str(content["dtype"]))
    if dtype.kind not in PLAIN_DTYPES:
        raise ValueError(f"an array of {dtype} is no record of ours")
    data = zlib.decompress(base64.b64decode(content["data"]))
    # A copy, as what frombuffer gives cannot be written to.
    return np.frombuffer(data, dtype).reshape(content["shape"]).copy()[()]


def _record_from_json(value: Mapping[str, Any]) -> Any:
    return KIND_OF_NAME[value["$record"]](**{name: from_json(item) for name, item in value["fields"].items()})


_READERS = {
    "$array": _array_from_json,
    "$record": _record_from_json,
    "$bytes": lambda value: base64.b64decode(value["$bytes"]),
    "$tuple": lambda value: tuple(from_json(item) for item in value["$tuple"]),
    "$map": lambda value: {from_json(key): from_json(item) for key, item in value["$map"]},
}
