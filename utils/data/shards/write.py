"""Writing shards: files one after the other into tar files, then the index of them."""

from __future__ import annotations

import hashlib
import tarfile
import tempfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

from model.errors import UserError
from utils.data.index.rows import write_rows
from utils.data.shards.layout import FOLDER, INDEX, LISTED, VERSION, Head, Part, Row, ShardFile, shard_name
from utils.data.shards.place import Place

PADDING = tarfile.BLOCKSIZE  # what tar rounds contents up to, bytes
END = 2 * tarfile.BLOCKSIZE  # zeros at the end of a tar file


class ShardWriter:
    """Writes files into shards of about `shard_bytes`, then `finish`es with the index. A context.

    The same files in the same order give the same bytes. Until `finish`, the place holds no shards for readers.
    """

    def __init__(self, place: Place, shard_bytes: int) -> None:
        self.place = place
        self.shard_bytes = shard_bytes
        self.rows: dict[str, Row] = {}  # by path
        self.shards: list[ShardFile] = []
        self.num_bytes = 0  # of the contents
        self._open = ExitStack()
        self._file: BinaryIO | None = None
        self._digest = hashlib.sha256()
        self._position = 0

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *problem: object) -> None:
        self._open.__exit__(*problem)  # type: ignore[arg-type]

    def add(self, path: str, content: bytes) -> None:
        """Add a file; one that is there already is left as it is. UserError for a name that cannot be stored."""
        if path in self.rows:
            return
        try:
            path.encode()
        except UnicodeEncodeError:
            raise UserError(
                f"{path!r} is no name in UTF-8, and shards hold no others; rename the file"
            ) from None
        if self._file is not None and self._position + len(content) > self.shard_bytes:
            self._close()
        if self._file is None:
            self._file = self._open.enter_context(self.place.writing(shard_name(len(self.shards))))
        info = tarfile.TarInfo(path)
        info.size, info.mode = len(content), 0o644
        self._put(info.tobuf(tarfile.PAX_FORMAT))
        folder, _, name = path.rpartition("/")
        crc = zlib.crc32(content)
        self.rows[path] = Row(folder, name, len(self.shards), self._position, len(content), crc)
        self._put(content)
        self._put(bytes(-len(content) % PADDING))
        self.num_bytes += len(content)

    def finish(
        self,
        parts: Iterable[Part],
        rate: float,
        folders: Iterable[str] = (),
        listed: Mapping[str, Sequence[tuple[str, bool]]] | None = None,
    ) -> None:
        """Close the last shard and write the index.

        Args:
            folders: folders that are there, be they empty.
            listed: folder -> the names that its listing holds, and whether each is a folder, packed or not.
        """
        self._close()
        for folder, names in (listed or {}).items():
            for name, is_folder in names:
                path = f"{folder}/{name}".removeprefix("/")
                if path not in self.rows and is_utf8(name):
                    self.rows[path] = Row(folder, name, FOLDER if is_folder else LISTED)
        for path in [*folders, *(row.folder for row in self.rows.values())]:
            while path and (path not in self.rows or self.rows[path].shard == LISTED):
                folder, _, name = path.rpartition("/")
                self.rows[path] = Row(folder, name, FOLDER)
                path = folder
        head = Head(version=VERSION, shards=tuple(self.shards), parts=tuple(parts), rate=rate)
        with tempfile.TemporaryDirectory() as temporary:
            path_here = Path(temporary) / INDEX
            write_rows(path_here, sorted(self.rows.values(), key=lambda row: (row.folder, row.name)), head)
            with self.place.writing(INDEX) as file:
                file.write(path_here.read_bytes())

    def _put(self, content: bytes) -> None:
        assert self._file is not None
        self._file.write(content)
        self._digest.update(content)
        self._position += len(content)

    def _close(self) -> None:
        if self._file is None:
            return
        self._put(bytes(END))
        self._open.close()
        self.shards.append(ShardFile(shard_name(len(self.shards)), self._position, self._digest.digest()))
        self._file, self._digest, self._position = None, hashlib.sha256(), 0


def is_utf8(name: str) -> bool:
    """Whether a name can be stored; Linux allows others, which no annotation can name."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
