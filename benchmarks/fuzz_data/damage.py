"""What is done to a file: cut, flipped, emptied, exchanged, made of another type, filled with absurd values."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.fuzz_data.world import OUTSIDE

Rng = np.random.Generator
WRONG_SIZE = "wrong size"
IMAGES, LABELS = (".jpg", ".jpeg"), (".png", ".tif")


# An annotation without its image is left out and counted, and nobody knows which image lacks it; polygons of
# published data sets reach a pixel over the border.
HIDDEN = re.compile(r"/image_id: |/segmentation/.* -> -1$")


@dataclass(frozen=True)
class Damage:
    """A kind of damage.

    apply: changes the file; returns what it did, or None where it cannot be done to this file.
    hides_in: files whose readers cannot always tell. In all others no label may come out otherwise than before.
    """

    name: str
    apply: Callable[[Path, Rng], str | None]
    suffixes: tuple[str, ...] = ()  # (): any file
    hides_in: tuple[str, ...] = ()

    def shows_in(self, path: Path, did: str) -> bool:
        """Whether a reader of this file can tell what was done."""
        return path.suffix.lower() not in self.hides_in and not HIDDEN.search(did)


# ------------------------------------------------------------------------------------------- any file


def truncate(path: Path, rng: Rng) -> str | None:
    content = path.read_bytes()
    kept = int(rng.integers(1, max(len(content), 2)))
    path.write_bytes(content[:kept])
    return f"{kept} of {len(content)} bytes"


def flip(path: Path, rng: Rng) -> str | None:
    content = bytearray(path.read_bytes())
    if not content:
        return None
    places = rng.integers(len(content) * 8, size=int(rng.integers(1, 9)))
    for place in places.tolist():
        content[place // 8] ^= 1 << place % 8
    path.write_bytes(bytes(content))
    return f"bits {sorted(places.tolist())[:4]}"


def empty(path: Path, rng: Rng) -> str | None:
    path.write_bytes(b"")
    return "0 bytes"


def delete(path: Path, rng: Rng) -> str | None:
    path.unlink()
    return "deleted"


def noise(path: Path, rng: Rng) -> str | None:
    path.write_bytes(rng.integers(0, 256, int(rng.integers(1, 5000)), dtype=np.uint8).tobytes())
    return "random bytes"


def zeros(path: Path, rng: Rng) -> str | None:
    path.write_bytes(bytes(path.stat().st_size))
    return "zeros, as after a power cut"


def folder(path: Path, rng: Rng) -> str | None:
    path.unlink()
    path.mkdir()
    return "a folder in its place"


def loop(path: Path, rng: Rng) -> str | None:
    path.unlink()
    path.symlink_to(path.name)
    return "a link to itself"


def dangling(path: Path, rng: Rng) -> str | None:
    path.unlink()
    path.symlink_to("nowhere")
    return "a link to nothing"


def pipe(path: Path, rng: Rng) -> str | None:
    path.unlink()
    os.mkfifo(path)
    return "a pipe in its place"


def device(path: Path, rng: Rng) -> str | None:
    path.unlink()
    path.symlink_to("/dev/zero")
    return "a link to /dev/zero"


# ------------------------------------------------------------------------------------------- images and labels


def size(path: Path, rng: Rng) -> str | None:
    with Image.open(path) as image:
        image.load()
        width, height = image.size
        wanted = [(width + 1, height), (width, height - 1), (2 * width, 2 * height), (1, 1)]
        other = wanted[int(rng.integers(len(wanted)))]
        changed = image.resize(other, Image.Resampling.NEAREST)
        _save(path, changed, image.format)
    return f"{width}x{height} -> {other[0]}x{other[1]}"


def mode(path: Path, rng: Rng) -> str | None:
    with Image.open(path) as image:
        image.load()
        # A label image of two values is a valid one.
        two = () if path.suffix in LABELS else ("1",)
        modes = [m for m in (*two, "L", "LA", "RGB", "RGBA", "P", "CMYK", "I", "F") if m != image.mode]
        other = modes[int(rng.integers(len(modes)))]
        stream = io.BytesIO()
        image_format = {"CMYK": "TIFF", "F": "TIFF"}.get(other, "PNG")
        try:
            image.convert(other).save(stream, image_format)
        except (ValueError, OSError):
            return None
        described = f"{image.mode} -> {other}"
    path.write_bytes(stream.getvalue())
    return described


def values(path: Path, rng: Rng) -> str | None:
    """Values that no class has: the most frequent value becomes one that the file does not hold."""
    with Image.open(path) as image:
        if image.mode not in ("L", "P", "I;16", "I"):
            return None
        array = np.array(image)
        palette, image_format = image.getpalette() if image.mode == "P" else None, image.format
    found, counts = np.unique(array, return_counts=True)
    other = int(rng.choice([201, 222, 240, 253] if array.dtype == np.uint8 else [9999, 60000]))
    if other in found:
        return None
    array = np.where(array == found[counts.argmax()], array.dtype.type(other), array)
    changed = Image.fromarray(array)
    if palette is not None:
        changed.putpalette(palette)
    _save(path, changed, image_format)
    return f"value {found[counts.argmax()]} -> {other}"


def huge_header(path: Path, rng: Rng) -> str | None:
    """A PNG or JPEG whose header announces far more pixels than it has."""
    content = bytearray(path.read_bytes())
    if content[:4] == b"\x89PNG":
        content[16:24] = (int(rng.choice([30_000, 2**31 - 1])).to_bytes(4, "big")) * 2
        content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    elif (place := content.find(b"\xff\xc0")) > 0:
        content[place + 5 : place + 9] = b"\xff\xfe\xff\xfe"
    else:
        return None
    path.write_bytes(bytes(content))
    return "a header of a huge image"


def other_format(path: Path, rng: Rng) -> str | None:
    with Image.open(path) as image:
        image.load()
        stream = io.BytesIO()
        choice = ["GIF", "BMP", "ICO", "PPM"][int(rng.integers(4))]
        try:
            image.convert("RGB").save(stream, choice)
        except (ValueError, OSError):
            return None
    path.write_bytes(stream.getvalue())
    return f"a {choice} under its name"


def _save(path: Path, image: Image.Image, image_format: str | None) -> None:
    stream = io.BytesIO()
    image.save(stream, image_format or "PNG")
    path.write_bytes(stream.getvalue())


# ------------------------------------------------------------------------------------------- structured files

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


STRUCTURED = (".json", ".jsonl", ".p")
TEXTS = (".txt", ".jsonl", ".csv")
NO_SUMS = (*STRUCTURED, *TEXTS, *IMAGES, ".tif", ".mat")  # a flipped bit may give another valid file
DAMAGES = (
    Damage("truncated", truncate, hides_in=(".txt",)),  # half a list of lines is a list of lines
    Damage("bits flipped", flip, hides_in=NO_SUMS),
    Damage("empty", empty),
    Damage("deleted", delete),
    Damage("random bytes", noise),
    Damage("zeros", zeros),
    Damage("a folder", folder),
    Damage("link to itself", loop),
    Damage("link to nothing", dangling),
    Damage("pipe", pipe),
    Damage("device", device),
    Damage(WRONG_SIZE, size, IMAGES + LABELS),
    Damage("wrong mode", mode, IMAGES + LABELS),
    Damage("wrong label values", values, LABELS),
    Damage("huge header", huge_header, IMAGES + LABELS),
    Damage("another format", other_format, IMAGES + LABELS),
    Damage("wrong type", wrong_type, STRUCTURED),
    Damage("absurd number", absurd_number, STRUCTURED),
    Damage("path that leaves", absurd_name, STRUCTURED),
    Damage("deep nesting", deep, (".json", ".jsonl")),
    Damage("key missing", missing_key, STRUCTURED, hides_in=STRUCTURED),
    Damage("entry repeated", repeated, STRUCTURED, hides_in=STRUCTURED),
    Damage("entry left out", left_out, STRUCTURED, hides_in=STRUCTURED),
    Damage("long text", long_text, STRUCTURED, hides_in=STRUCTURED),
    Damage("lines", lines, TEXTS, hides_in=TEXTS),
)


def damages_for(path: Path) -> list[Damage]:
    """The damages that can be done to a file of this kind."""
    return [one for one in DAMAGES if not one.suffixes or path.suffix.lower() in one.suffixes]
