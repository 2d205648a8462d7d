"""What two folders of runs differ in, to the last bit."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.checkpoints.layouts.deepspeed import safe_globals

BY_START = re.compile(r"events\.out\.tfevents|run\.lock|run\.yaml")  # differ from start to start


def differences(ours: Path, theirs: Path) -> list[str]:
    """Every difference of two run folders: names of files, losses, counts, weights, optimizer, what is the best."""
    found = list(_of_names(ours, theirs))
    for name in ("losses.jsonl", "data.json", "validation.json", "ckpt_model/latest", "ckpt_best/latest"):
        if _text(ours / name) != _text(theirs / name):
            found.append(f"{name} differs")
    for path in sorted(theirs.rglob("*.pt")):
        name = path.relative_to(theirs)
        if (ours / name).is_file():
            found += [f"{name}: {what}" for what in _of_values(_load(ours / name), _load(path), "")]
    return found


def last_step(folder: Path) -> int:
    """The last step that a run has logged."""
    lines = _text(folder / "losses.jsonl").splitlines()
    steps = []
    for line in lines:
        try:
            steps.append(json.loads(line)["step"])
        except (json.JSONDecodeError, KeyError):  # killed while writing
            continue
    return max(steps, default=0)


def newest_named(folder: Path) -> int:
    """The step of the newest save that has its name, whole or not."""
    names = (path.name for path in (folder / "ckpt_model").glob("global_step*"))
    return max((int(name.removeprefix("global_step")) for name in names), default=0)


def resumed_at(log: str) -> int:
    """The step that a run says it continues at; 0 for a start from nothing."""
    found = re.search(r"^continues .* at step (\d+)$", log, re.MULTILINE)
    return int(found[1]) if found else 0


def _of_names(ours: Path, theirs: Path) -> Iterator[str]:
    names = [
        {str(path.relative_to(folder)) for path in folder.rglob("*") if not BY_START.search(path.name)}
        for folder in (ours, theirs)
    ]
    yield from (f"{name} is left over" for name in sorted(names[0] - names[1]))
    yield from (f"{name} is missing" for name in sorted(names[1] - names[0]))


def _of_values(ours: Any, theirs: Any, place: str) -> Iterator[str]:
    if isinstance(theirs, dict) and isinstance(ours, dict):
        if ours.keys() != theirs.keys():
            yield f"{place} has other keys"
            return
        for key, value in theirs.items():
            yield from _of_values(ours[key], value, f"{place}/{key}")
    elif isinstance(theirs, list | tuple) and isinstance(ours, list | tuple):
        if len(ours) != len(theirs):
            yield f"{place} has another length"
            return
        for index, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
            yield from _of_values(mine, other, f"{place}/{index}")
    elif isinstance(theirs, Tensor) and isinstance(ours, Tensor):
        if ours.dtype != theirs.dtype or not torch.equal(ours, theirs):
            yield f"{place} differs"
    elif hasattr(theirs, "__dict__") and type(ours) is type(theirs):
        yield from _of_values(vars(ours), vars(theirs), place)
    elif ours != theirs:
        yield f"{place} is {ours!r:.60}, was {theirs!r:.60}"


def _load(path: Path) -> Any:
    with torch.serialization.safe_globals(safe_globals()):
        return torch.load(path, map_location="cpu", weights_only=True)


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
