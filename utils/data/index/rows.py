"""The file of an index: its items one by one as MessagePack, and where each begins.

    prefix   64 bytes: magic, the sizes of the three parts, SHA-256 of all but the magic and itself
    rows     the items, one after the other
    offsets  int64, num_rows + 1: item i is rows[offsets[i]:offsets[i + 1]]
    head     MessagePack: what belongs to all of them

An item is read when it is asked for, by `pread`: the pages of the file are in the system's cache, once for all
processes, and count for none of them; unlike a mapped file, one that is cut off under a running process is an error
and not its end. The file holds data and no code. Sizes that do not fit the file are refused before anything is
allocated, and what is decoded has the declared types or is an error.
"""

from __future__ import annotations

import hashlib
import os
import stat
import struct
import weakref
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar, overload

import msgspec
import numpy as np

from model.errors import UserError

Item = TypeVar("Item")

MAGIC = b"LSGROWS\1"
SIZES = struct.Struct("<QQQ")  # bytes of the rows, number of rows, bytes of the head
DIGEST_SIZE = 32
PREFIX_SIZE = len(MAGIC) + SIZES.size + DIGEST_SIZE
CHUNK = 2**22  # bytes that are read or written at once
CURE = "remove the file, or read the annotations without it: --index_cache none"


class DamagedIndexError(ValueError):
    """A file of rows that is not as it was written; the message says why."""


def _plain(value: Any) -> Any:
    """What MessagePack has no type for, as it is stored."""
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"an index holds no {type(value).__name__}")


def _of_plain(kind: type, value: Any) -> Any:
    if kind is Path and isinstance(value, str):
        return Path(value)
    raise TypeError(f"an index holds no {kind.__name__}")


def write_rows(path: Path, items: Iterable[Any], head: Any) -> None:
    """Write a file of rows.

    Raises:
        OSError: it cannot be written.
        TypeError, ValueError, OverflowError: an item holds what MessagePack cannot, such as a whole number of more
            than 64 bits.
    """
    encoder = msgspec.msgpack.Encoder(enc_hook=_plain)
    digest = hashlib.sha256()
    offsets, waiting, num_written = [0], bytearray(), 0
    with path.open("wb") as file:

        def put(part: bytes | bytearray) -> None:
            digest.update(part)
            file.write(part)

        file.write(bytes(PREFIX_SIZE))
        for item in items:
            encoder.encode_into(item, waiting, -1)  # appended
            offsets.append(num_written + len(waiting))
            if len(waiting) >= CHUNK:
                put(waiting)
                num_written += len(waiting)
                waiting.clear()
        put(waiting)
        put(np.array(offsets, dtype="<i8").tobytes())
        encoded = encoder.encode(head)
        put(encoded)
        sizes = SIZES.pack(offsets[-1], len(offsets) - 1, len(encoded))
        digest.update(sizes)
        file.seek(0)
        file.write(MAGIC + sizes + digest.digest())


class RowFile:
    """An open file of rows whose sizes fit.

    Raises:
        OSError: it cannot be read.
        DamagedIndexError: it is not a whole file of rows.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe would keep the opener waiting
        weakref.finalize(self, os.close, self.descriptor)
        if not stat.S_ISREG(os.fstat(self.descriptor).st_mode):
            raise DamagedIndexError("it is no file")
        size = os.fstat(self.descriptor).st_size
        self.prefix = self.read(0, min(PREFIX_SIZE, size))
        if size < PREFIX_SIZE or not self.prefix.startswith(MAGIC):
            raise DamagedIndexError("it does not begin as an index does")
        self.num_bytes, self.num_rows, self.head_size = SIZES.unpack_from(self.prefix, len(MAGIC))
        self.offsets_at = PREFIX_SIZE + self.num_bytes
        self.head_at = self.offsets_at + 8 * (self.num_rows + 1)
        if self.head_at + self.head_size != size:
            raise DamagedIndexError(f"its parts do not add up to its {size} bytes")

    def read(self, start: int, size: int) -> bytes:
        """`size` bytes from `start` on."""
        content = os.pread(self.descriptor, size, start)
        while len(content) < size and (
            more := os.pread(self.descriptor, size - len(content), start + len(content))
        ):
            content += more
        if len(content) < size:
            raise DamagedIndexError("it was cut off")
        return content

    def verify(self) -> None:
        """Compare the content with its hash; reads the whole file."""
        digest = hashlib.sha256()
        end = self.head_at + self.head_size
        for start in range(PREFIX_SIZE, end, CHUNK):
            digest.update(self.read(start, min(CHUNK, end - start)))
        digest.update(self.prefix[len(MAGIC) : -DIGEST_SIZE])
        if digest.digest() != self.prefix[-DIGEST_SIZE:]:
            raise DamagedIndexError("its content does not fit its checksum")

    def head(self, kind: Any) -> Any:
        """The head, of the type `kind`."""
        return decoded(
            msgspec.msgpack.Decoder(kind, dec_hook=_of_plain), self.read(self.head_at, self.head_size)
        )

    def offsets(self) -> np.ndarray:
        """(num_rows + 1,) int64, in ascending order."""
        found = np.frombuffer(self.read(self.offsets_at, 8 * (self.num_rows + 1)), dtype="<i8")
        if found[0] != 0 or found[-1] != self.num_bytes or (np.diff(found) < 0).any():
            raise DamagedIndexError("its rows do not follow one another")
        return found


class Rows(Sequence[Item], Generic[Item]):
    """The items of a file of rows, of the type `kind`; each is decoded when it is asked for.

    A copy in another process, forked or pickled, reads the same file.
    """

    def __init__(self, file: RowFile, kind: type[Item], cure: str = CURE) -> None:
        self.file = file
        self.kind = kind
        self.cure = cure
        self.offsets = file.offsets()
        self.decoder = msgspec.msgpack.Decoder(kind, dec_hook=_of_plain)

    def __len__(self) -> int:
        return self.file.num_rows

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | Sequence[Item]:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        position = index + len(self) if index < 0 else index
        if not 0 <= position < len(self):
            raise IndexError(f"item {index} of {len(self)}")
        start, end = self.offsets[position : position + 2].tolist()
        try:
            item: Item = decoded(self.decoder, self.file.read(PREFIX_SIZE + start, end - start))
        except DamagedIndexError as problem:
            raise UserError(f"{self.file.path}, item {position}: {problem}; {self.cure}") from None
        return item

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopened, (self.file.path, self.file.prefix, self.kind, self.cure)


def _reopened(path: Path, prefix: bytes, kind: type[Item], cure: str) -> Rows[Item]:
    file = RowFile(path)
    if file.prefix != prefix:
        raise UserError(f"{path} was replaced while it was in use, as its data changed; start again")
    return Rows(file, kind, cure)


def decoded(decoder: msgspec.msgpack.Decoder[Any], content: bytes) -> Any:
    """What `content` holds; DamagedIndexError if it is not of the decoder's type."""
    try:
        return decoder.decode(content)
    except (msgspec.MsgspecError, ValueError, TypeError, RecursionError) as problem:
        raise DamagedIndexError(f"it holds something else ({problem})") from None
