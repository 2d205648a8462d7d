"""Reads text, JSON and YAML files of other tools: encodings, line ends, one-line errors."""

from __future__ import annotations

import codecs
import json
import stat
from pathlib import Path
from typing import Any, BinaryIO

import yaml

from model.errors import UserError

# UTF-32 first: its little-endian mark begins with that of UTF-16.
BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
WITHOUT_MARK = "utf-8"
CURE = "save it as UTF-8, as editors offer, or convert it: iconv -f ENCODING -t UTF-8"


def read_text(path: str | Path, *, fallback: str = "") -> str:
    """The text of a file in UTF-8, or in UTF-8, UTF-16 or UTF-32 with a byte order mark.

    Args:
        path: of a regular file; a pipe or a device is not read, as it may never end.
        fallback: encoding of what is not UTF-8, where a published data set needs one.

    Raises:
        UserError: the file is of another encoding; names the file, the first wrong byte and the cure.
        OSError: the file cannot be read.
    """
    return decode_text(read_bytes(path), path, fallback=fallback)


def decode_text(content: bytes, path: str | Path, *, fallback: str = "") -> str:
    """`read_text` of a file that was read already; `path` is for messages."""
    for mark, encoding in BYTE_ORDER_MARKS:
        if content.startswith(mark):
            return _decode(content, encoding, len(mark), path)
    if fallback:
        try:
            return content.decode(WITHOUT_MARK)
        except UnicodeDecodeError:
            return content.decode(fallback, errors="replace")
    return _decode(content, WITHOUT_MARK, 0, path)


def read_bytes(path: str | Path) -> bytes:
    """What a regular file holds; UserError for a folder, a pipe or a device."""
    with open_regular(path) as file:
        return file.read()


def open_regular(path: str | Path) -> BinaryIO:
    """A regular file, open for reading bytes; UserError for anything else, before it can block the reader."""
    _require_regular(Path(path).stat().st_mode, path, "name a regular file")
    return open(path, "rb")


def is_regular(path: str | Path) -> bool:
    """Whether there is a regular file, to be read or written; False where nothing is.

    Raises:
        UserError: there is a folder, a pipe or a device, which is not passed over as if nothing were there.
        OSError: it cannot be looked at, such as a link to itself.
    """
    try:
        mode = Path(path).stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return False
    _require_regular(mode, path, "move it elsewhere")
    return True


def _require_regular(mode: int, path: str | Path, cure: str) -> None:
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe or a device"
        raise UserError(f"{path}: is {kind}, not a file; {cure}")


def split_lines(text: str) -> list[str]:
    r"""The lines of a text. A line ends at \n, or at \r\n; the last one may have no end.

    Unlike str.splitlines, which also ends lines at U+2028, \x0b, \x0c, \x85 and others: JSON and class names may
    hold those inside a line.
    """
    lines = text.split("\n")
    if not lines[-1]:
        del lines[-1]
    return [line.removesuffix("\r") for line in lines]


def _decode(content: bytes, encoding: str, start: int, path: str | Path) -> str:
    try:
        text = content[start:].decode(encoding)
    except UnicodeDecodeError as problem:
        place = start + problem.start
        marked = f"its byte order mark says {encoding.upper()}, but " if start else ""
        raise UserError(
            f"{path}: {marked}byte {place} (0x{content[place]:02x}) is not {encoding.upper()}; {CURE}"
        ) from None
    if "\0" in text:
        # Text never holds a zero; half of the bytes of UTF-16 without its mark are zeros.
        place = start + len(text[: text.index("\0")].encode(encoding))
        raise UserError(
            f"{path}: byte {place} (0x00) belongs to no text; if this is UTF-16 without a byte order mark, {CURE}"
        )
    return text


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; an absent file is an empty object. Raises a UserError naming the file."""
    if not is_regular(path):
        return {}
    try:
        content = json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as problem:
        raise UserError(f"{path} is not JSON ({problem}); copy or download it again") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold a JSON object, and holds a {type(content).__name__}")
    return content


class _PlainLoader(yaml.SafeLoader):
    """PyYAML's safe loader without what no settings need: keys that are given twice, and merges of mappings.

    PyYAML takes the last of two equal keys in silence; merges of merges multiply, to billions in ten lines.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                raise yaml.MarkedYAMLError(problem="merges (<<) are not read", problem_mark=key.start_mark)
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    problem = f"{key.value!r} is given twice; leave one out"
                    raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path, flag: str = "") -> dict[str, Any]:
    """The "name: value" lines of a YAML file; none in an empty file. Raises a UserError naming the file."""
    named = f"{flag} {path}".strip()
    try:
        content = yaml.load(read_text(path), _PlainLoader)
    except UserError:
        raise
    except (yaml.YAMLError, RecursionError, ValueError) as problem:  # ValueError: a date such as 2026-13-01
        raise UserError(f"{named} is not YAML: {' '.join(str(problem).split())}") from None
    if content is not None and not isinstance(content, dict):
        raise UserError(f"{named} must hold 'name: value' lines")
    return content or {}
