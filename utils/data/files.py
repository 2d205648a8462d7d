"""Finding and reading the files of a data set; errors say what was looked for and what is there."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from model.downloads import check_download
from model.errors import UserError
from model.files import read_text
from utils.data.types import cut

logger = logging.getLogger(__name__)

# What file managers leave beside data on macOS, Windows and network drives; names that begin with a dot besides.
SYSTEM_NAMES = {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx", "@eadir"}
MAX_LISTED = 12  # names shown of what a folder or a file holds instead of what was wanted
MAX_HELD = 200  # characters of those of a file


def locate(root: Path, candidates: Sequence[str], wanted_by: str) -> Path:
    """The first of `candidates`, paths below `root`, that exists; else FileNotFoundError says what is."""
    for candidate in candidates:
        if (root / candidate).exists():
            return root / candidate
    looked_for = " or ".join(str(root / candidate) for candidate in candidates)
    raise FileNotFoundError(f"{wanted_by} needs {looked_for}; {what_is_there(root / candidates[0])}")


def what_is_there(path: Path) -> str:
    """The nearest existing folder above `path` and the first names in it."""
    folder = path.parent
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    return f"{folder} holds {names_in(folder)} (is --dataset_dir right?)"


def names_in(folder: Path) -> str:
    """The first names in a folder, for messages: "a, b and 3 more", or "nothing"."""
    names = sorted(entry.name for entry in folder.iterdir() if not is_hidden(entry.name))
    more = f" and {len(names) - MAX_LISTED} more" if names[MAX_LISTED:] else ""
    return ", ".join(names[:MAX_LISTED]) + more or "nothing"


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is no data: .DS_Store, ._a.png (AppleDouble), Thumbs.db, __MACOSX."""
    return name.startswith(".") or name.lower() in SYSTEM_NAMES


def visible(folder: Path) -> list[Path]:
    """What is in a folder, but for what is hidden; sorted."""
    return sorted(path for path in folder.iterdir() if not is_hidden(path.name))


def tell_passed_over(folder: Path, paths: Sequence[Path], wanted: str = "image files") -> None:
    """Log which entries of a folder are not what is wanted there, so that nothing is passed over in silence."""
    if paths:
        more = f" and {len(paths) - MAX_LISTED} more" if paths[MAX_LISTED:] else ""
        names = ", ".join(path.name for path in paths[:MAX_LISTED])
        logger.warning(
            "%s: %d entries are no %s and are passed over: %s%s", folder, len(paths), wanted, names, more
        )


class FolderListing:
    """Which files a folder holds: `"00/images/12.jpg" in listing`.

    Each folder is listed once, as asking for every file takes minutes on a network file system.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._names: dict[PurePosixPath, frozenset[str]] = {}

    def __contains__(self, relative_path: str) -> bool:
        path = PurePosixPath(relative_path)
        return path.name in self.names(path.parent)

    def names(self, relative_path: str | PurePosixPath) -> frozenset[str]:
        """The names in a folder below this one; none where it is no folder."""
        path = PurePosixPath(relative_path)
        if path not in self._names:
            folder = self.folder / path
            names = (entry.name for entry in folder.iterdir()) if folder.is_dir() else ()
            self._names[path] = frozenset(names)
        return self._names[path]


def read_json(path: Path, keys: Sequence[str] = (), *, fallback: str = "") -> Any:
    """What a JSON file holds: a dictionary with `keys`, when some are given. A UserError names the file.

    `fallback` is the encoding of a file that is not UTF-8, as in `read_text`.
    """
    text = read_text(path, fallback=fallback)
    try:
        content = parse_json(text)
    except (ValueError, RecursionError) as problem:  # ValueError: also numbers of thousands of digits
        check_download(path)
        raise UserError(f"{path}: not JSON ({problem})") from None
    require_keys(content, keys, path)
    return content


def require_keys(content: Any, keys: Sequence[str], path: Path) -> None:
    """UserError naming the file when what it holds is not a dictionary with all of `keys`."""
    for key in keys:
        if not isinstance(content, dict) or key not in content:
            held = ", ".join(map(str, list(content)[:MAX_LISTED])) if isinstance(content, dict) else ""
            raise UserError(f"{path}: no {key!r} in it" + (f"; it has {cut(held, MAX_HELD)}" if held else ""))


def parse_json(text: str) -> Any:
    """What a JSON text says. ValueError or RecursionError for what is none, or holds half a character.

    JSON may write a character above 65535 as two halves, "\\ud83d\\ude00". One half alone can neither be tokenized
    nor printed.
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
