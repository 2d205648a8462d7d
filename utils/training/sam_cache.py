"""Disk cache of image embeddings for the mask decoder: its encoder is frozen, so each image is encoded once.

    DIR/2f6c01.../a7/a7c4....safetensors     DIR / image encoder / first byte of the key / key

Entries are never stale. The folder's name is a hash of the encoder (weights, settings, dtype), the file's name a hash
of the image (decoded pixels, resizing method), so any change leads to another name. The folder of an encoder that is
no longer used can be removed at any time.

Any number of processes and nodes may share DIR: an entry is written to a temporary file and renamed, which is atomic,
and concurrent writers of an entry write the same content. When DIR is full, nothing is evicted: an epoch visits every
image once, so the least recently used entry is the one needed next.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from model.decoders.base import BatchedDecoder
from model.inputs import Levels
from utils.common.paths import writable_folder
from utils.data.sam_keys import checksum, encoder_key
from utils.data.types import Batch

logger = logging.getLogger(__name__)

SUFFIX = ".safetensors"
GIGABYTE = 10**9
# Maximum number of writes between two measurements of the folder, because other processes write to it too.
COUNT_EVERY = 1000


class SamCache:
    """The cached embeddings of one image encoder; workers `load`, the training process `complete`s batches.

    Args:
        folder: DIR; created if it does not exist.
        encoder_key: hash of the encoder, see `utils.data.sam_keys.encoder_key`.
        shapes, dtype: of one embedding, (channels, height, width) of each level.
        max_gb: cache size limit in GB (10^9 bytes); when full, nothing is written; None: no limit. The limit is soft:
            processes measure the folder only now and then, so together they may exceed it by about an entry each.
        num_writers: number of processes that write at the same time.
        together: all processes must encode if one does, as ZeRO-3 requires; see `complete`.

    Raises:
        ValueError: the folder cannot be written.
    """

    def __init__(
        self,
        folder: str | Path,
        encoder_key: str,
        *,
        shapes: Sequence[tuple[int, int, int]],
        dtype: torch.dtype,
        max_gb: float | None = None,
        num_writers: int = 1,
        together: bool = False,
    ) -> None:
        self.folder = Path(folder)
        self.encoder_key = encoder_key
        self.shapes = {
            name: tuple(shape) for name, shape in zip(level_names(len(shapes)), shapes, strict=True)
        }
        self.dtype = dtype
        self.max_bytes = None if max_gb is None else int(max_gb * GIGABYTE)
        self.num_writers = num_writers
        self.together = together
        self._allowance = 0  # bytes that may be written before the folder is measured again
        self._closed = False  # full or no longer writable: logged once, then nothing is written
        writable_folder(self.folder / encoder_key, "--sam_cache")

    @classmethod
    def of(
        cls,
        sam: BatchedDecoder,
        folder: str | Path,
        *,
        max_gb: float | None = None,
        num_writers: int = 1,
        together: bool = False,
    ) -> SamCache:
        """The cache for this decoder; call it before `deepspeed.initialize`, while the weights are not sharded."""
        return cls(
            folder,
            encoder_key(sam),
            shapes=sam.settings.embedding_shapes,
            dtype=sam.embedding_dtype,
            max_gb=max_gb,
            num_writers=num_writers,
            together=together,
        )

    def path(self, key: str) -> Path:
        return self.folder / self.encoder_key / key[:2] / f"{key}{SUFFIX}"

    def load(self, key: str) -> Levels | None:
        """The embedding, each level (channels, height, width), memory-mapped; None if it is not in the cache.

        A damaged or wrong file is logged and treated as missing.
        """
        path = self.path(key)
        try:
            return self._read(path, key)
        except FileNotFoundError:
            return None
        except (ValueError, OSError, SafetensorError) as problem:
            logger.warning("%s is not a valid cache entry (%s); the image is encoded again", path, problem)
            return None

    def store(self, key: str, embedding: Levels) -> bool:
        """Write an entry unless it exists or the folder is full; returns whether it was written.

        A damaged file is replaced, even in a full folder. An error of the file system is logged once; after it
        nothing is written, and training continues.
        """
        path = self.path(key)
        replaces = path.exists()
        if self._is_good(path, key) if replaces else self._closed:  # it exists if another process was faster
            return False
        levels = dict(
            zip(self.shapes, (level.detach().cpu().contiguous() for level in embedding), strict=True)
        )
        content = save(levels, {"key": key, "crc32": str(checksum(tuple(levels.values())))})
        temporary = path.with_name(f".{key}.{socket.gethostname()}.{os.getpid()}")
        try:
            if not replaces and not self._has_room(len(content)):
                return False
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(content)
            # No fsync: after a crash the checksum detects a file whose content was not written to the disk.
            temporary.replace(path)
        except OSError as problem:
            temporary.unlink(missing_ok=True)
            self._close(f"SAM embeddings can no longer be written to {self.folder} ({problem.strerror})")
            return False
        return True

    def complete(self, batch: Batch, sam: BatchedDecoder) -> Batch:
        """The batch with `sam_embeddings` for all its images, on the device of its tensors, instead of `sam_images`.

        Images that were not in the cache are encoded in one call and stored. ZeRO-3 shards the encoder's weights and
        gathers them layer by layer, a collective operation: if one process encodes, all must.
        """
        inputs = batch.inputs
        pixels, known = inputs.sam_images, inputs.sam_embeddings
        if self.together and pixels is None and _any_process(False, inputs.input_ids.device):
            side = sam.settings.image_size
            nothing = inputs.input_ids.new_zeros(1, 3, side, side, dtype=torch.uint8)
            sam.encode(nothing, [(side, side)])  # to join the collective
        elif self.together and pixels is not None:
            _any_process(True, pixels.device)
        if pixels is None:
            return batch
        missing = batch.sam_missing
        fresh = sam.encode(pixels, [inputs.resized_sizes[index] for index in missing])
        for index, *embedding in zip(missing, *fresh, strict=True):
            self.store(batch.sam_keys[index], tuple(embedding))
        if known is not None:
            is_missing = [index in missing for index in range(len(batch.sam_keys))]
            fresh = tuple(_in_order(is_missing, *levels) for levels in zip(fresh, known, strict=True))
        return replace(batch, inputs=replace(inputs, sam_images=None, sam_embeddings=fresh))

    def describe(self) -> str:
        """Number of entries and size of the cache, for the log."""
        num_images, _ = _measure(self.folder / self.encoder_key)
        limit = f", of {self.max_bytes / GIGABYTE:g} allowed" if self.max_bytes is not None else ""
        return (
            f"SAM's embeddings of {num_images} images are in {self.folder} "
            f"({self._num_bytes() / GIGABYTE:.2f} GB including other encoders{limit})"
        )

    def _read(self, path: Path, key: str) -> Levels:
        """The embedding as a memory map of the file; raises ValueError if it is damaged or belongs to another key."""
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if set(file.keys()) != set(self.shapes) or metadata.get("key") != key:
                raise ValueError("it was written for another key")
            embedding = tuple(file.get_tensor(name) for name in self.shapes)
        for level, shape in zip(embedding, self.shapes.values(), strict=True):
            if tuple(level.shape) != shape or level.dtype != self.dtype:
                raise ValueError(f"it holds {level.dtype} {tuple(level.shape)}")
        if metadata.get("crc32") != str(checksum(embedding)):
            raise ValueError("its checksum is wrong")
        return embedding

    def _is_good(self, path: Path, key: str) -> bool:
        try:
            self._read(path, key)
        except (ValueError, OSError, SafetensorError):
            return False
        return True

    def _has_room(self, size: int) -> bool:
        """Whether `size` bytes may be written.

        With n writers, a process may write 1 / (2 n) of the remaining space before it measures the folder again. If
        all write at the same rate, the limit is exceeded by fewer than n entries, after a few dozen measurements.
        """
        if self.max_bytes is not None and self._allowance < size:
            left = self.max_bytes - self._num_bytes()
            self._allowance = max(size, min(left // (2 * self.num_writers), COUNT_EVERY * size))
            if left < size:
                self._close(
                    f"{self.folder} is full (--sam_cache_gb {self.max_bytes / GIGABYTE:g}); "
                    "images that are not in it are encoded every time"
                )
        self._allowance -= size
        return not self._closed

    def _num_bytes(self) -> int:
        """Total size of the entries of all encoders."""
        return sum(_measure(encoder)[1] for encoder in _subfolders(self.folder))

    def _close(self, reason: str) -> None:
        if not self._closed:
            logger.warning("%s", reason)
        self._closed = True


def level_names(number: int) -> tuple[str, ...]:
    """Names of the tensors in an entry: one for each level."""
    return ("embedding",) if number == 1 else tuple(f"level_{index}" for index in range(number))


def _in_order(is_missing: Sequence[bool], fresh: Tensor, known: Tensor) -> Tensor:
    """One level of a batch, from the images that were encoded now and those that were in the cache."""
    of_missing, of_known = iter(fresh), iter(known)
    return torch.stack([next(of_missing if missing else of_known) for missing in is_missing])


def _any_process(encodes: bool, device: torch.device) -> bool:
    flag = torch.tensor(int(encodes), device=device)
    dist.all_reduce(flag, dist.ReduceOp.MAX)
    return bool(flag)


def _subfolders(folder: Path) -> list[Path]:
    with os.scandir(folder) as found:
        return [Path(entry.path) for entry in found if entry.is_dir()]


def _measure(encoder: Path) -> tuple[int, int]:
    """Number of entries of one encoder, and their total bytes, estimated from a few files as all have one size."""
    count = size = 0
    try:
        for folder in _subfolders(encoder):
            names = [name for name in os.listdir(folder) if name.endswith(SUFFIX)]
            count += len(names)
            size = max([size, *(folder.joinpath(name).stat().st_size for name in names[:1])])
    except (
        FileNotFoundError,
        PermissionError,
    ):  # being removed by another process, or not a folder of the cache
        pass
    return count, count * size
