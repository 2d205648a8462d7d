"""Reads weight files of every kind, without running code from them."""

from __future__ import annotations

import pickle
import struct
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from model.downloads import check_download
from model.errors import UserError
from model.files import read_json
from model.strict_loading import NAMES_SHOWN

SAFETENSORS_FILE, TORCH_FILE = "model.safetensors", "pytorch_model.bin"
# Single files and the indexes of shards (which weight is in which file), in the order in which they are looked for.
WEIGHT_FILES = (SAFETENSORS_FILE, TORCH_FILE)
INDEX_FILES = tuple(f"{name}.index.json" for name in WEIGHT_FILES)
# Where training scripts put weights, the likeliest first.
WRAPPERS = ("state_dict", "module", "model", "model_state_dict", "model_state", "net", "network", "weights", "params",
            "sam", "sam_model", "ema", "model_ema")  # fmt: skip
# What torch.load raises for files that are truncated, of another kind, or hold code.
READ_ERRORS = (pickle.UnpicklingError, struct.error, RuntimeError, EOFError, OSError, LookupError, ValueError,
               TypeError, AttributeError, AssertionError, MemoryError, RecursionError)  # fmt: skip
# torch.load's advice to run the file's code.
ADVICE = "weights_only"


def read_torch_file(path: str | Path) -> dict[str, Any]:
    """`torch.load` of a checkpoint that may hold nothing but tensors and plain containers.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a checkpoint, or holds code.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    check_download(path)
    check_stored(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip(path))
    except READ_ERRORS as error:
        # Torch's message begins with the advice to trust the file; what was refused stands at its end.
        refused = str(error).rpartition("WeightsUnpickler error:")[2].strip()
        reason = next(iter(refused.splitlines()), type(error).__name__)
        if ADVICE in reason:
            reason = "it holds more than tensors"
        raise UserError(
            f"{path} is not a readable checkpoint of tensors (cut off, or it holds code): {reason}"
        ) from error


def check_stored(path: Path) -> None:
    """UserError for an archive with compressed entries: torch.save writes none, and 8 MB can inflate to 8 GB."""
    if not is_zip(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            inflated = [
                info.filename for info in archive.infolist() if info.compress_type != zipfile.ZIP_STORED
            ]
    except (zipfile.BadZipFile, ValueError, OSError):
        return  # torch.load says what is wrong
    if inflated:
        raise UserError(
            f"{path} is not a readable checkpoint of tensors: {inflated[0]!r} in it is compressed, which torch.save "
            "never does; save it again with torch.save"
        )


def is_zip(path: Path) -> bool:
    """Whether `torch.save` wrote the file as a zip archive (since 1.6), which can be memory-mapped."""
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def read_weight_file(path: str | Path) -> dict[str, Tensor]:
    """All weights of a .safetensors, .bin, .pt or .pth file.

    Wrappers that training scripts put around them are removed: {"model": weights, "epoch": 3}, nested `WRAPPERS`, and
    "module." before every name.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is cut off, holds code, or holds no weights.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        with open_safetensors(path) as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    content = unwrapped(read_torch_file(path))
    entries = content.items() if isinstance(content, dict) else ()
    weights = {name: value for name, value in entries if isinstance(value, Tensor)}
    if not weights:
        raise UserError(
            f"{path} holds no weights by name but {what_is_in(content)}; pass a checkpoint's weight file"
        )
    while all(name.startswith("module.") for name in weights):  # of DataParallel
        weights = without_prefix(weights, "module.")
    return weights


def unwrapped(content: object) -> object:
    """The content of nested `WRAPPERS`."""
    while isinstance(content, dict) and not any(isinstance(value, Tensor) for value in content.values()):
        inner = next((content[name] for name in WRAPPERS if isinstance(content.get(name), dict)), None)
        if inner is None:
            break
        content = inner
    return content


def what_is_in(content: object) -> str:
    """The first entries of a file's content, for messages: "epoch (int), optimizer (dict)"."""
    if not isinstance(content, dict):
        return f"a {type(content).__name__}"
    entries = [f"{name} ({type(value).__name__})" for name, value in content.items()]
    return ", ".join(entries[:NAMES_SHOWN]) + (" ..." if entries[NAMES_SHOWN:] else "") or "nothing"


@contextmanager
def open_safetensors(path: Path) -> Iterator[Any]:
    """An open .safetensors file; its header says how long the file must be.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is cut off, or something else.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    check_download(path)
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise UserError(f"{path} is cut off or no safetensors file ({error}); download it again") from error


def weight_files(folder: str | Path) -> list[Path]:
    """The weight files of a folder: shards with an index or one file, safetensors before .bin.

    Raises:
        FileNotFoundError: no weights, or a shard that the index names is missing.
    """
    folder = Path(folder)
    for name in INDEX_FILES:
        if (folder / name).is_file():
            index = read_json(folder / name).get("weight_map")
            if not isinstance(index, dict):
                raise UserError(f"{folder / name} has no 'weight_map'; copy or download it again")
            for shard in index.values():
                if not isinstance(shard, str) or Path(shard).name != shard:
                    raise UserError(
                        f"{folder / name} names {shard!r}, which is no file of this folder; copy or download it again"
                    )
            paths = [folder / shard for shard in sorted(set(index.values()))]
            for path in paths:
                if not path.is_file():
                    raise FileNotFoundError(
                        f"{folder / name} names {path.name}, which is not there; copy or download it again"
                    )
            return paths
    for name in WEIGHT_FILES:
        if (folder / name).is_file():
            return [folder / name]
    raise FileNotFoundError(f"{folder} has no weights; looked for {', '.join((*INDEX_FILES, *WEIGHT_FILES))}")


def read_folder(folder: str | Path) -> dict[str, Tensor]:
    """All weights of a folder's files; errors as in `weight_files` and `read_weight_file`."""
    weights: dict[str, Tensor] = {}
    for path in weight_files(folder):
        weights.update(read_weight_file(path))
    return weights


def prefix_of(weights: Mapping[str, Tensor], name: str) -> str | None:
    """What stands before every name of `weights`, one of which ends with `name`; None if there is no such name."""
    found = next((each for each in weights if each == name or each.endswith(f".{name}")), None)
    if found is None:
        return None
    prefix = found.removesuffix(name)
    return prefix if all(each.startswith(prefix) for each in weights) else None


def without_prefix(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The weights whose name starts with `prefix`, under the rest of their name."""
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
