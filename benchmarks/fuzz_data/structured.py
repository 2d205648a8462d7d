"""Damage to JSON, JSON lines, pickles and lists in text files: values of another type, absurd ones, entries gone."""

from __future__ import annotations

import json
import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.fuzz_data.world import OUTSIDE

Rng = np.random.Generator

ABSURD: tuple[Any, ...] = (
    1e308, -1e308, float("nan"), float("inf"), -1, -(2**31), 2**31, 2**63, 2**70, 10**40, 1e9, 1e8, 10**4300,
)  # fmt: skip
TYPES: tuple[Any, ...] = (
    None, True, False, 0, 1.5, "text", "", [], {}, [1], [[]], [None], {"a": 1}, [[1, 2]], "\ud800", "\x00",
)  # fmt: skip
NAMES = (
    f"../{OUTSIDE}/secret.jpg", f"../../{OUTSIDE}/secret.jpg", f"../../../{OUTSIDE}/secret.png", "/etc/passwd",
    "/dev/zero", "..", ".", "a/../../x.jpg", "x" * 300, "\x00.jpg", "~root/x.jpg", "CON", "a\nb.jpg", "",
)  # fmt: skip


def wrong_type(path: Path, rng: Rng) -> str | None:
    return _mutate(path, rng, lambda value: _other(value, TYPES, rng))


def absurd_number(path: Path, rng: Rng) -> str | None:
    return _mutate(path, rng, lambda value: _pick(ABSURD, rng), lambda v: type(v) in (int, float))


def absurd_name(path: Path, rng: Rng) -> str | None:
    return _mutate(path, rng, lambda value: _pick(NAMES, rng), lambda v: isinstance(v, str) and "." in v)


def deep(path: Path, rng: Rng) -> str | None:
    """Nesting beyond any recursion limit, as text."""
    if path.suffix not in (".json", ".jsonl"):
        return None
    depth = int(rng.choice([900, 5_000, 200_000]))
    mark = f'"@{depth}@"'
    done = _mutate(path, rng, lambda value: f"@{depth}@")
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(mark, "[" * depth + "]" * depth, 1), encoding="utf-8")
    return done


def missing_key(path: Path, rng: Rng) -> str | None:
    return _restructure(path, rng, lambda parent, key: parent.pop(key), dict)


def repeated(path: Path, rng: Rng) -> str | None:
    return _restructure(path, rng, lambda parent, key: parent.insert(key, parent[key]), list)


def left_out(path: Path, rng: Rng) -> str | None:
    return _restructure(path, rng, lambda parent, key: parent.pop(key), list)


def long_text(path: Path, rng: Rng) -> str | None:
    return _mutate(path, rng, lambda value: "word " * 50_000, lambda v: isinstance(v, str))


def lines(path: Path, rng: Rng) -> str | None:
    """A text file with a line repeated, emptied, or of another encoding."""
    rows = path.read_bytes().split(b"\n")
    place = int(rng.integers(len(rows)))
    choice = int(rng.integers(5))
    if choice == 0:
        rows.insert(place, rows[place])
    elif choice == 1:
        rows[place] = b""
    elif choice == 2:
        rows[place] = b"\xff\xfe\x00\xd8"
    elif choice == 3:
        rows[place] = b"[SEG] <image> </s> =1+1 \x1b[2J"
    else:
        rows[place] = b"a" * 1_000_000
    path.write_bytes(b"\n".join(rows))
    return f"line {place}, way {choice}"


def _mutate(
    path: Path, rng: Rng, change: Callable[[Any], Any], fits: Callable[[Any], bool] = lambda _: True
) -> str | None:
    def at(parent: Any, key: Any) -> None:
        parent[key] = change(parent[key])

    return _restructure(path, rng, at, (dict, list), fits)


def _restructure(
    path: Path,
    rng: Rng,
    change: Callable[[Any, Any], Any],
    kinds: type | tuple[type, ...],
    fits: Callable[[Any], bool] = lambda _: True,
) -> str | None:
    content = _load(path)
    places = [
        (parent, key, name)
        for parent, key, name in _places([content], "")
        if isinstance(parent, kinds) and parent is not None and fits(parent[key]) and name
    ]
    if not places:
        return None
    # A kind of place as often as another: else most changes would hit one of a thousand coordinates.
    kinds_of_place = sorted({_kind(name) for _, _, name in places})
    kind = kinds_of_place[int(rng.integers(len(kinds_of_place)))]
    alike = [place for place in places if _kind(place[2]) == kind]
    parent, key, name = alike[int(rng.integers(len(alike)))]
    before = _shown(parent[key])
    change(parent, key)
    still_there = key in parent if isinstance(parent, dict) else key < len(parent)
    after = _shown(parent[key]) if still_there else "gone"
    _store(path, content)
    return f"{name}: {before} -> {after}"


def _shown(value: Any) -> str:
    try:
        return repr(value)[:40]
    except ValueError:
        return "a number of thousands of digits"


def _places(value: Any, name: str) -> Iterator[tuple[Any, Any, str]]:
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items:
        here = f"{name}/{key}" if name or not isinstance(value, list) else "/"
        yield value, key, here if name else ""
        if isinstance(inner, dict | list):
            yield from _places(inner, here)


def _kind(name: str) -> str:
    return "/".join("#" if part.isdecimal() else part for part in name.split("/"))


def _load(path: Path) -> Any:
    if path.suffix == ".p":
        return pickle.loads(path.read_bytes())  # written by the toy world
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in text.splitlines()]
    return json.loads(text)


def _store(path: Path, content: Any) -> None:
    if path.suffix == ".p":
        path.write_bytes(pickle.dumps(content, protocol=2))
    elif path.suffix == ".jsonl":
        path.write_text("".join(_dumps(line) + "\n" for line in content), encoding="utf-8")
    else:
        path.write_text(_dumps(content), encoding="utf-8")


def _dumps(value: Any) -> str:
    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        return json.dumps(value)
    finally:
        sys.set_int_max_str_digits(limit)


def _other(value: Any, choices: tuple[Any, ...], rng: Rng) -> Any:
    return _pick(tuple(choice for choice in choices if type(choice) is not type(value)), rng)


def _pick(choices: tuple[Any, ...], rng: Rng) -> Any:
    return choices[int(rng.integers(len(choices)))]
