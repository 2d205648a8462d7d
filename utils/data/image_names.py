"""Which image file an annotation file means: the names that tools write, and the files that are there.

Names come from other machines and other tools: with backslashes, with the folders of somebody else's disk, encoded as
in a URL, with the prefix that a server gave an upload. A name that is there as written means that file. Another one
is tried in these spellings, and without a suffix as the only image of that stem; it is taken only where no second
name would mean the same file.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from utils.data.files import FolderListing, is_hidden
from utils.data.images import IMAGE_SUFFIXES

# Label Studio puts eight hexadecimal digits before the name of an uploaded file, other servers a UUID.
UPLOAD_PREFIX = re.compile(
    r"^(?:[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9a-f]{8})[-_](?=.)", re.IGNORECASE
)
DRIVE = re.compile(r"^[A-Za-z]:(?=/)")
Names = dict[str, list[str]]
FORMS = ("NFC", "NFD")  # Unicode's composed and decomposed letters; macOS writes the latter


class ImageFiles:
    """The files in one folder that a set of names means: `name in files`, `files.path(name)`."""

    def __init__(self, folder: Path, names: Collection[str]) -> None:
        self.folder = folder
        listing = FolderListing(folder)
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
        """Where the image of a name is, or where it would be."""
        return self.folder / self._files.get(name, name)

    @property
    def respelled(self) -> dict[str, str]:
        """Names that are not there as written -> the files that they mean."""
        return {name: file for name, file in self._files.items() if name != file}

    def why_not(self, name: str) -> str:
        """Why no file is taken for a name."""
        if name in self.ambiguous:
            file = self.ambiguous[name]
            return f"could be {file}, but so could another name; write the names as the files have them"
        return "is not there"


class Alike:
    """The only file that is called like a relative path but for case, Unicode form, the encoding of a URL, the prefix
    of an upload, or a suffix that the path leaves out.
    """

    def __init__(self, listing: FolderListing) -> None:
        self.listing = listing
        # Folder -> names by `loose`: whole, without a prefix, without the suffix of an image.
        self._names: dict[str, tuple[Names, Names, Names]] = {}

    def find(self, path: str) -> str | None:
        folder, slash, name = path.rpartition("/")
        if folder not in self._names:
            whole, bare, stems = self._names[folder] = defaultdict(list), defaultdict(list), defaultdict(list)
            for there in self.listing.names(folder):
                whole[loose(there)].append(there)
                if without_prefix(there) != there:
                    bare[loose(without_prefix(there))].append(there)
                if (stem := without_image_suffix(there)) != there and not is_hidden(there):
                    stems[loose(stem)].append(there)
        whole, bare, stems = self._names[folder]
        key = loose(name)
        # One of the two may have a prefix. With two different ones they are two files.
        alike = [whole.get(key), whole.get(loose(without_prefix(name))), bare.get(key)]
        if without_image_suffix(name) == name:
            alike.append(stems.get(key))
        for found in alike:
            if found and len(found) == 1:
                return f"{folder}{slash}{found[0]}"
        return None


def find_file(name: str, listing: FolderListing, alike: Alike) -> str | None:
    """The file below a folder, as a relative path, that `name` means in one of its spellings."""
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
    """Relative paths that a name may stand for, from the most to the least literal."""
    text = name.strip().strip("'\"").replace("\\", "/")
    plain = [text]
    if "://" in text or text.startswith("/data/"):  # a URL, or what Label Studio has for one
        parts = urlsplit(text)
        plain = [*parse_qs(parts.query).get("d", ()), parts.path]  # ?d=: its local files
    seen = set()
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
    """A file name without the prefix that a server gave it when it was uploaded."""
    return UPLOAD_PREFIX.sub("", name)
