"""Shards as a folder of files: what `utils.data.storage` reads from and lists."""

from __future__ import annotations

import os
import zlib
from bisect import bisect_left
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from model.errors import UserError
from model.files import open_regular
from utils.data import storage
from utils.data.index.rows import DIGEST_SIZE, PREFIX_SIZE, DamagedIndexError, RowFile, Rows
from utils.data.shards.cache import WRONG_SUM, shard_cache, wrong_size
from utils.data.shards.layout import FOLDER, INDEX, LISTED, Head, Row, ShardFile, check_head, is_plain
from utils.data.shards.place import Place, place_of
from utils.data.storage import ShardError, Stamp

MAX_OPEN = 256  # shards that a process has open
AGAIN = "shard the data again"


def open_shards(text: str, flag: str = "sharded:") -> ShardTree:
    """The shards at a path or URL, mounted; opened once in a process. `flag` is named in errors.

    Raises:
        FileNotFoundError: there are none.
        UserError: they cannot be read.
    """
    place = place_of(text, flag)
    tree = storage.mounted().get(place.root)
    if not isinstance(tree, ShardTree):
        tree = ShardTree(text, place)
        storage.mount(place.root, tree)
    return tree


class ShardTree:
    """The files of one folder of shards, found by their index. A copy in another process opens the shards anew."""

    def __init__(self, text: str, place: Place) -> None:
        self.text = text
        self.place = place
        self.cache = shard_cache(place)
        file = self._open_index()
        self.index_path = file.path
        try:
            file.verify()
            self.head: Head = file.head(Head)
            self.rows = Rows(file, Row, AGAIN)
        except DamagedIndexError as problem:
            raise self._damaged(problem) from None
        self.digest = file.prefix[-DIGEST_SIZE:]
        check_head(self.head, place.shown(INDEX))
        self._handle = lru_cache(maxsize=MAX_OPEN)(self._open_shard)
        self._found = lru_cache(maxsize=1024)(self._search)

    def __reduce__(self) -> tuple[Any, ...]:
        return open_shards, (self.text,)

    @property
    def root(self) -> Path:
        """The path that stands for the top folder."""
        return Path(self.place.root)

    def is_folder(self, name: str) -> bool:
        return name == "" or ((row := self._found(name)) is not None and row.shard == FOLDER)

    def is_file(self, name: str) -> bool:
        return (row := self._found(name)) is not None and row.shard != FOLDER

    def listing(self, name: str) -> Sequence[tuple[str, bool]]:
        listed = []
        for position in range(self._first(name, ""), len(self.rows)):
            row = self.rows[position]
            if row.folder != name:
                break
            if not is_plain(row.name):
                raise ShardError(
                    f"{self.place.shown(INDEX)} holds {row.name!r}, which is no name of a file; {AGAIN}"
                )
            listed.append((row.name, row.shard == FOLDER))
        return listed

    def state(self, name: str) -> tuple[int, Stamp]:
        row = self._found(name)
        assert row is not None
        return row.size, (int.from_bytes(self.digest[:7]), row.shard, row.offset)

    def read(self, name: str) -> bytes:
        row = self._found(name)
        assert row is not None
        if row.shard == LISTED:
            raise ShardError(
                f"{self.root / name} is not in the shards, as no item used it when they were written; {AGAIN}"
            )
        if not 0 <= row.shard < len(self.head.shards):
            raise ShardError(f"{self.place.shown(INDEX)}: {name!r} is in no shard that it lists; {AGAIN}")
        shard = self.head.shards[row.shard]
        if not 0 <= row.offset <= row.offset + row.size <= shard.size:  # before anything is allocated
            raise ShardError(
                f"{self.place.shown(INDEX)}: {name!r} lies beyond the end of {shard.name}; {AGAIN}"
            )
        content = self._content(row, shard)
        if len(content) != row.size or zlib.crc32(content) != row.crc:
            raise ShardError(f"{self._shown(row.shard)} is damaged, at {name!r}: {WRONG_SUM}")
        return content

    def _content(self, row: Row, shard: ShardFile) -> bytes:
        handle = self._handle(row.shard)
        if handle is None:
            return self.place.read(shard.name, row.offset, row.size)
        parts: list[bytes] = []
        missing = row.size
        while missing and (part := os.pread(handle.fileno(), missing, row.offset + row.size - missing)):
            parts.append(part)
            missing -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _open_shard(self, number: int) -> BinaryIO | None:
        """A shard on disk, of the size that it should have; None for one that is read from a URL part by part."""
        shard = self.head.shards[number]
        try:
            path = None if self.cache is None else self.cache.shard(self.place, shard)
            if path is None and self.place.is_remote:
                return None
            handle = open_regular(path or self.place.shown(shard.name))
        except FileNotFoundError:
            raise ShardError(
                f"{self.place.shown(shard.name)} is missing; copy it again, or {AGAIN}"
            ) from None
        except OSError as problem:
            raise ShardError(f"{self._shown(number)} cannot be read ({problem.strerror})") from None
        except ShardError:
            raise
        except UserError as problem:
            raise ShardError(str(problem)) from None
        if (size := os.fstat(handle.fileno()).st_size) != shard.size:
            raise ShardError(f"{self._shown(number)} {wrong_size(size, shard.size)}")
        return handle

    def _shown(self, number: int) -> str:
        return self.place.shown(self.head.shards[number].name)

    def _search(self, name: str) -> Row | None:
        folder, _, last = name.rpartition("/")
        position = self._first(folder, last)
        row = self.rows[position] if position < len(self.rows) else None
        return row if row is not None and (row.folder, row.name) == (folder, last) else None

    def _first(self, folder: str, name: str) -> int:
        """The place of the first row that is not before a name."""
        return bisect_left(self.rows, (folder, name), key=lambda row: (row.folder, row.name))

    def _open_index(self) -> RowFile:
        """The index on disk: where it lies, or its copy in the cache."""
        try:
            prefix = self.place.read(INDEX, 0, PREFIX_SIZE)
            if len(prefix) < PREFIX_SIZE:
                raise DamagedIndexError("it was cut off")
            path = Path(self.place.shown(INDEX))
            if self.cache is not None:
                path = self.cache.index(self.place, INDEX, prefix[-DIGEST_SIZE:])
            file = RowFile(path)
            if file.prefix != prefix:
                raise DamagedIndexError(f"its copy {path} is another one; remove that")
            return file
        except (FileNotFoundError, NotADirectoryError):
            raise FileNotFoundError(
                f"sharded:{self.text} holds no shards: there is no {self.place.shown(INDEX)}, which is written last; "
                "make them with python -m utils.data.tools.shard"
            ) from None
        except DamagedIndexError as problem:
            raise self._damaged(problem) from None

    def _damaged(self, problem: DamagedIndexError) -> ShardError:
        return ShardError(f"{self.place.shown(INDEX)} is damaged: {problem}; copy it again, or {AGAIN}")
