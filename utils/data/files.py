"""Finding and reading the files of a data set; errors name what was looked for and what exists."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

from model.downloads import check_download
from model.errors import UserError
from model.files import decode_text
from utils.data import storage
from utils.data.index.sources import note_folder, read_source
from utils.data.types import cut

logger = logging.getLogger(__name__)

# Files that macOS, Windows and network drives leave beside data; names that begin with a dot are hidden, too.
SYSTEM_NAMES = {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx", "@eadir"}
MAX_LISTED = 12  # names that a message lists
LARGE = 2**20  # bytes of a JSON file from which a faster parser is tried first
MAX_HELD = 200  # characters of the keys of a file that a message lists


def locate(root: Path, candidates: Sequence[str], wanted_by: str) -> Path:
    """The first existing path of `candidates`, relative to `root`; FileNotFoundError names what exists instead."""
    for candidate in candidates:
        if storage.is_named(root / candidate):
            return root / candidate
    looked_for = " or ".join(str(root / candidate) for candidate in candidates)
    raise FileNotFoundError(f"{wanted_by} needs {looked_for}; {what_is_there(root / candidates[0])}")


def what_is_there(path: Path) -> str:
    """For messages: the nearest existing folder above `path` and the first names in it."""
    folder = path.parent
    while not storage.is_folder(folder) and folder != folder.parent:
        folder = folder.parent
    return f"{folder} holds {names_in(folder)} (is --dataset_dir right?)"


def names_in(folder: Path) -> str:
    """For messages: the first names in a folder, "a, b and 3 more", or "nothing"."""
    names = sorted(name for name in storage.names(folder) if not is_hidden(name))
    more = f" and {len(names) - MAX_LISTED} more" if names[MAX_LISTED:] else ""
    return ", ".join(names[:MAX_LISTED]) + more or "nothing"


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is not data: .DS_Store, ._a.png (AppleDouble), Thumbs.db, __MACOSX."""
    return name.startswith(".") or name.lower() in SYSTEM_NAMES


def visible(folder: Path) -> list[Path]:
    """The entries of a folder that are not hidden, sorted."""
    return sorted(folder / name for name in storage.names(folder) if not is_hidden(name))


def log_skipped(folder: Path, paths: Sequence[Path], wanted: str = "image files") -> None:
    """Log which entries of a folder are skipped because they are not `wanted`."""
    if paths:
        more = f" and {len(paths) - MAX_LISTED} more" if paths[MAX_LISTED:] else ""
        names = ", ".join(path.name for path in paths[:MAX_LISTED])
        logger.warning(
            "%s: %d entries are not %s and are skipped: %s%s", folder, len(paths), wanted, names, more
        )


def leaves_folder(name: str) -> bool:
    """Whether a name in an annotation file may lead out of the data's folder: it is absolute, or has `..` in it."""
    path = PurePosixPath(name)
    return path.is_absolute() or ".." in path.parts


class FolderListing:
    """The files below a folder: `"00/images/12.jpg" in listing`.

    Each folder is listed once: testing the existence of every file takes minutes on a network file system. Names that
    lead out of the folder are not in it unless `anywhere`.
    """

    def __init__(self, folder: Path, *, anywhere: bool = False) -> None:
        self.folder = folder
        self.anywhere = anywhere
        self._names: dict[PurePosixPath, frozenset[str]] = {}
        self._beside: dict[str, frozenset[str]] = {}  # a name's part up to its last slash -> the names there

    def __contains__(self, relative_path: str) -> bool:
        folder, slash, name = relative_path.rpartition("/")
        if name in ("", ".", ".."):
            path = PurePosixPath(relative_path)
            return self._may_hold(relative_path) and path.name in self.names(path.parent)
        if (folder := folder + slash) not in self._beside:  # as there are many names in few folders
            self._beside[folder] = self.names(folder) if self._may_hold(folder) else frozenset()
        return name in self._beside[folder]

    def _may_hold(self, relative_path: str) -> bool:
        return self.anywhere or not leaves_folder(relative_path)

    def names(self, relative_path: str | PurePosixPath) -> frozenset[str]:
        """The names in a folder below this one; empty if it does not exist."""
        path = PurePosixPath(relative_path)
        if path not in self._names:
            folder = self.folder / path
            names = frozenset(storage.names(folder)) if storage.is_folder(folder) else None
            note_folder(folder, names)
            self._names[path] = names or frozenset()
        return self._names[path]


def first_holding(folders: Sequence[FolderListing], name: str) -> Path | None:
    """The path of a file in the first of several folders that has it; None if none has."""
    return next((listing.folder / name for listing in folders if name in listing), None)


def read_annotations(path: Path, keys: Sequence[str] = (), *, fallback: str = "") -> Any:
    """The content of a JSON file of annotations or settings; a dictionary with `keys` if some are given.

    `fallback` is the encoding of files that are not UTF-8, as in `read_text`. Raises UserError naming the file.
    """
    written = read_source(path)
    content = parse_fast(written) if len(written) >= LARGE else None
    if content is None:
        text = decode_text(written, path, fallback=fallback)
        try:
            content = parse_json(text)
        except (ValueError, RecursionError) as problem:  # ValueError: also numbers of thousands of digits
            check_download(path)
            raise UserError(f"{path}: not JSON ({problem})") from None
    require_keys(content, keys, path)
    return content


def require_keys(content: Any, keys: Sequence[str], path: Path) -> None:
    """UserError naming the file when its content is not a dictionary with all of `keys`."""
    for key in keys:
        if not isinstance(content, dict) or key not in content:
            held = ", ".join(map(str, list(content)[:MAX_LISTED])) if isinstance(content, dict) else ""
            raise UserError(f"{path}: no {key!r} in it" + (f"; it has {cut(held, MAX_HELD)}" if held else ""))


def parse_fast(content: bytes | str) -> Any:
    """The content of JSON in UTF-8, three times as fast as `parse_json`; None for what that must decide or explain.

    That is everything beyond the letter of the standard: a byte order mark, NaN, half a character, malformed text.
    """
    try:
        return msgspec.json.decode(content)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None


def parse_json(text: str) -> Any:
    """The content of a JSON text. ValueError or RecursionError for malformed JSON and for a lone surrogate.

    JSON may write a character above 65535 as two surrogates, "\\ud83d\\ude00". One alone can neither be tokenized nor
    printed.
    """
    content = json.loads(text)
    if "\\ud" in text or "\\uD" in text:
        try:
            json.dumps(content, ensure_ascii=False).encode()
        except UnicodeEncodeError as problem:
            half = ascii(problem.object[problem.start])
            raise ValueError(
                f"{half} is one half of a character; write both halves, or the character"
            ) from None
    return content
