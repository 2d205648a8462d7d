"""Resolves every path that a user or a file names: quotes, ~, URLs and Unicode forms as people type them."""

from __future__ import annotations

import argparse
import contextlib
import glob
import os
import re
import tempfile
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import unquote, urlsplit

from model.errors import UserError

# What a shell puts a backslash before; in "C:\new" and "a\b" none of these follows.
ESCAPED = re.compile(r"\\([\s'\"()\[\]{}&;!$`*?<>|#~\\])")
QUOTES = ("'", '"')
MAX_NAME_BYTES = 255  # of one part of a path, on every common file system
MAX_CLASS_BYTES = 80  # of a class name in it


def resolve(text: str, flag: str = "") -> str:
    """The path that `text` means.

    An existing path is taken as it is. Else these are tried, in this order: quotes around the whole are taken off,
    and a shell's backslashes, as of a file that was dropped into a terminal; a file:// URL is decoded; backslashes
    separate folders. ~ and $HOME are expanded in all of them, and names found in another Unicode form (NFC, NFD).
    With nothing there the plainest reading is returned, for what is to be written or fetched.

    Args:
        text: as typed; empty stays empty.
        flag: named in errors.

    Raises:
        UserError: it holds a zero byte, or ~NAME of a user who is not there.
    """
    if "\0" in text:
        raise UserError(f"{flag} {text!r}: a path holds no zero byte".strip())
    if not text.strip():
        return ""
    unquoted = _unquoted(text.strip())
    plain = _expanded(
        _decoded(unquoted) if unquoted != text.strip() else ESCAPED.sub(r"\1", _decoded(unquoted))
    )
    readings = (text, _expanded(unquoted), plain, _expanded(unquoted.replace("\\", "/")))
    for reading in readings[1:] if text == "~" or text.startswith("~/") else readings:
        if (found := existing_form(reading)) is not None:
            return found
    if plain.startswith("~"):
        raise UserError(
            f"{flag} {text}: there is no user {plain[1:].split('/')[0]!r}; write ./{plain}".strip()
        )
    folder, name = os.path.split(plain)
    while folder and not plain.isascii():  # what is to be made goes into the folders that are there
        if (found := existing_form(folder)) is not None:
            return os.path.join(found, name)
        folder, last = os.path.split(folder)
        name = os.path.join(last, name)
    return plain


def path_flag(text: str) -> Path:
    """`resolve` as the type of a flag of argparse."""
    try:
        return Path(resolve(text))
    except UserError as problem:
        raise argparse.ArgumentTypeError(str(problem)) from None


def existing_form(name: str) -> str | None:
    """`name` as it is on disk: itself, or with parts in another Unicode form; None if nothing is there.

    Some systems and tools write "é" as one character (NFC), others as two (NFD); Linux takes them for two names.
    """
    if os.path.exists(name):
        return name
    if name.isascii():
        return None
    found = Path(name).anchor
    for part in Path(name).parts[1 if found else 0 :]:
        here = os.path.join(found, part)
        if not os.path.exists(here):
            wanted = unicodedata.normalize("NFC", part)
            try:
                there = os.listdir(found or ".")
            except OSError:
                return None
            names = [other for other in there if unicodedata.normalize("NFC", other) == wanted]
            if len(names) != 1:  # none, or it is open which one is meant
                return None
            here = os.path.join(found, names[0])
        found = here
    return found


def matches(pattern: str) -> list[str]:
    """Sorted paths that a glob pattern matches. Folders in front that exist are taken as they are: "trip [1]/*.jpg".

    Brackets in the rest are part of names where they match nothing as a set of characters.
    """
    parts, known = Path(pattern).parts, ""
    while parts and (found := existing_form(os.path.join(known, parts[0]))) is not None:
        known, parts = found, parts[1:]
    rest = os.path.join(*parts) if parts else ""
    for tried in (rest, rest.replace("[", "[[]")):
        for form in ("NFC", "NFD"):
            wanted = os.path.join(glob.escape(known), unicodedata.normalize(form, tried))
            if names := glob.glob(wanted, recursive=True):
                return sorted(names)
    return []


def user_cache_folder(name: str) -> Path | None:
    """The folder of this user's caches of a kind; None for a user without a home."""
    own = os.environ.get("XDG_CACHE_HOME", "")
    with contextlib.suppress(RuntimeError):
        return (Path(own) if os.path.isabs(own) else Path.home() / ".cache") / "lasagna" / name
    return None


def writable_folder(path: str | Path, flag: str) -> Path:
    """The folder, made if it is not there and tried.

    Raises:
        UserError: nothing can be written into it, or a folder to be made has a name by `name_problem`.
    """
    folder = Path(path)
    for place in (folder, *folder.parents):
        if place.name != ".." and not os.path.lexists(place) and (problem := name_problem(place.name)):
            raise UserError(f"{flag} {str(place)!r}: its name {problem}; name another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as problem:
        raise UserError(
            f"{flag} {folder} cannot be written to ({_reason(problem)}); name another folder"
        ) from None
    return folder


def check_writable(path: str | Path, flag: str) -> Path:
    """As `writable_folder`, but folders that had to be made for the trial are removed again.

    For folders that are written much later: a run that ends in another mistake leaves nothing behind.
    """
    folder = Path(path)
    missing = [place for place in (folder, *folder.parents) if not os.path.lexists(place)]
    try:
        return writable_folder(folder, flag)
    finally:
        for place in missing:
            with contextlib.suppress(OSError):
                place.rmdir()


def name_problem(name: str) -> str:
    """Why no folder is made under a name; "" if it is a good one.

    What cannot be seen, or what other systems change when the folder is copied there, makes two names out of one.
    """
    if not name.isprintable():
        return "holds control characters, or others that cannot be shown"
    if name != name.strip():
        return "begins or ends with a blank"
    if name.endswith("."):
        return "ends with a dot"
    return ""


def shortened(name: str, max_bytes: int) -> str:
    """A file name, or a part of one, of at most `max_bytes` in UTF-8; cut between characters."""
    return name.encode()[:max_bytes].decode(errors="ignore")


def same_place(one: str, other: str) -> bool:
    """Whether two names are the same file or folder: relative and absolute, or through links."""
    return one == other or (bool(one and other) and os.path.realpath(one) == os.path.realpath(other))


def _unquoted(text: str) -> str:
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in QUOTES else text


def _decoded(text: str) -> str:
    """A file:// URL as a path."""
    if not text.lower().startswith("file:/"):
        return text
    url = urlsplit(text)
    return unquote(url.path) if url.netloc in ("", "localhost") else text


def _expanded(text: str) -> str:
    return os.path.expandvars(os.path.expanduser(text))


def _reason(problem: OSError) -> str:
    return problem.strerror or str(problem)


def file_stems(entries: Iterable[str]) -> dict[str, str]:
    """A file name for each entry of --val_dataset_list: `refcoco+|unc|val` is refcoco+_unc_val. No two are alike."""
    stems: dict[str, str] = {}
    for entry in entries:
        plain = re.sub(r"[^A-Za-z0-9+.-]+", "_", entry).strip("_.") or "data"
        plain = shortened(plain, 120)  # of the 255 bytes of a file name
        taken, stem = {name.lower() for name in stems.values()}, plain
        while stem.lower() in taken:
            stem = f"{plain}_{len(stems) + 1}"
            plain += "_"
        stems[entry] = stem
    return stems


def file_suffix(name: str) -> str:
    """A class name as the end of a file name."""
    words = shortened(re.sub(r"\W+", "_", name).strip("_"), MAX_CLASS_BYTES)
    return f"_{words}" if words else ""
