"""Resolving the image names of an annotation file to files on disk.

Names come from other machines and tools: with backslashes, with the folders of another disk, URL-encoded, with the
prefix that a server adds to uploads, without a suffix. A name that exists as written means that file. Otherwise these
spellings are tried, and a file is taken only if no other name would resolve to it.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qs, unquote, urlsplit

from utils.data.files import FolderListing, is_hidden, leaves_folder
from utils.data.image_formats import IMAGE_SUFFIXES

# Label Studio puts eight hexadecimal digits before the name of an uploaded file, other servers a UUID.
UPLOAD_PREFIX = re.compile(
    r"^(?:[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9a-f]{8})[-_](?=.)", re.IGNORECASE
)
DRIVE = re.compile(r"^[A-Za-z]:(?=/)")
Names = dict[str, list[str]]
# Unicode's composed and decomposed letters; macOS writes the latter.
FORMS: tuple[Literal["NFC", "NFD"], ...] = ("NFC", "NFD")


class ImageFiles:
    """The files of one folder that a set of names resolves to: `name in files`, `files.path(name)`."""

    def __init__(self, folder: Path, names: Collection[str], *, anywhere: bool = False) -> None:
        self.folder = folder
        self.anywhere = anywhere
        listing = FolderListing(folder, anywhere=anywhere)
        self.as_written = {name for name in names if is_in(name, listing)}
        self._files = {name: name for name in self.as_written}
        rest = [name for name in dict.fromkeys(names) if name not in self.as_written]
        alike = Alike(listing)
        found = {name: file for name in rest if (file := find_file(name, listing, alike)) is not None}
        taken = Counter(found.values()) + Counter(self.as_written)
        self._files |= {name: file for name, file in found.items() if taken[file] == 1}
        self.ambiguous = {name: file for name, file in found.items() if taken[file] > 1}

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def __len__(self) -> int:
        return len(self._files)

    def path(self, name: str) -> Path:
        """The file that a name resolves to; the name below the folder if there is none."""
        return self.folder / self._files.get(name, name)

    @property
    def respelled(self) -> dict[str, str]:
        """Names that do not exist as written -> the files that they resolve to."""
        return {name: file for name, file in self._files.items() if name != file}

    def why_not(self, name: str) -> str:
        """For messages: why a name does not resolve to a file."""
        if name in self.ambiguous:
            file = self.ambiguous[name]
            return f"could be {file}, but so could another name; write the names as the files have them"
        if not self.anywhere and leaves_folder(name):
            return f"leads out of {self.folder}; copy the image there, or allow such names: |anywhere=true"
        return "is not there"


class Alike:
    """Finds the only file whose name equals that of a path up to case, Unicode form, URL encoding, upload prefix, or
    a suffix that the path leaves out.
    """

    def __init__(self, listing: FolderListing) -> None:
        self.listing = listing
        # Folder -> names by `loose`: whole, without a prefix, without the suffix of an image.
        self._names: dict[str, tuple[Names, Names, Names]] = {}

    def find(self, path: str) -> str | None:
        """The file as a relative path; None if there is none or more than one."""
        folder, slash, name = path.rpartition("/")
        if folder not in self._names:
            self._names[folder] = self._index(folder)
        whole, bare, stems = self._names[folder]
        key = loose(name)
        # Only one of the two may have a prefix: with two different prefixes they are different files.
        alike = [whole.get(key), whole.get(loose(without_prefix(name))), bare.get(key)]
        if without_image_suffix(name) == name:
            alike.append(stems.get(key))
        for found in alike:
            if found and len(found) == 1:
                return f"{folder}{slash}{found[0]}"
        return None

    def _index(self, folder: str) -> tuple[Names, Names, Names]:
        whole: Names = defaultdict(list)
        bare: Names = defaultdict(list)
        stems: Names = defaultdict(list)
        for there in self.listing.names(folder):
            whole[loose(there)].append(there)
            if without_prefix(there) != there:
                bare[loose(without_prefix(there))].append(there)
            if (stem := without_image_suffix(there)) != there and not is_hidden(there):
                stems[loose(stem)].append(there)
        return whole, bare, stems


def find_file(name: str, listing: FolderListing, alike: Alike) -> str | None:
    """The file below a folder, as a relative path, that one of the spellings of `name` resolves to."""
    try:
        for spelling in spellings(name):
            if spelling in listing:
                return spelling
            if (file := alike.find(spelling)) is not None:
                return file
    except (OSError, ValueError):  # a name that no file system can hold
        return None
    return None


def is_in(name: str, listing: FolderListing) -> bool:
    """Whether a file of this name is listed; a name that no file system can hold is not."""
    try:
        return name in listing
    except (OSError, ValueError):
        return False


def spellings(name: str) -> Iterator[str]:
    """Relative paths that a name may mean, from the most to the least literal."""
    text = name.strip().strip("'\"").replace("\\", "/")
    plain = [text]
    if "://" in text or text.startswith("/data/"):  # a URL, or what Label Studio has for one
        url = urlsplit(text)
        plain = [*parse_qs(url.query).get("d", ()), url.path]  # ?d= is Label Studio's local files
    seen: set[str] = set()
    for path in plain:
        for decoded in dict.fromkeys((path, unquote(path).replace("\\", "/"))):
            parts = [part for part in DRIVE.sub("", decoded).split("/") if part not in ("", ".", "..")]
            for start in range(len(parts)):
                for form in FORMS:
                    spelling = unicodedata.normalize(form, "/".join(parts[start:]))
                    if spelling not in seen:
                        seen.add(spelling)
                        yield spelling


def loose(name: str) -> str:
    """A file name in lower case and composed letters, "%20" a space."""
    return unicodedata.normalize("NFC", unquote(name)).casefold()


def without_image_suffix(name: str) -> str:
    """A file name without the suffix of an image: "a" for "a.jpg", "a.b" for "a.b"."""
    stem, dot, suffix = name.rpartition(".")
    return stem if stem and f"{dot}{suffix}".lower() in IMAGE_SUFFIXES else name


def without_prefix(name: str) -> str:
    """A file name without the prefix that a server adds to uploads."""
    return UPLOAD_PREFIX.sub("", name)
