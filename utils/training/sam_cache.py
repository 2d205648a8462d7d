"""SAM's image embeddings on disk: the encoder is frozen, so one picture is encoded once, not once an epoch.

    DIR/2f6c01.../a7/a7c4....safetensors     DIR / image encoder / first byte of the key / key

An entry can never be stale. Its folder is named after the encoder (weights, settings, number format), its file after
the picture (decoded pixels, how they are resized): whatever changes, changes the name. A folder of an encoder that is
no longer used can be removed at any time.

Any number of processes and nodes may share DIR: an entry is written under a temporary name and renamed, which is
atomic, and those who meet write the same. Nothing is evicted when DIR is full: an epoch visits every picture once, so
the entry that was used longest ago is the one needed next.
"""

from __future__ import annotations

import logging
import os
import socket
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from model.decoders.sam import SamSegmenter
from utils.common.paths import writable_folder
from utils.data.sam_keys import checksum, encoder_key
from utils.data.types import Batch

logger = logging.getLogger(__name__)

NAME = "embedding"
SUFFIX = ".safetensors"
GIGABYTE = 10**9
# The folder is counted again after so many own additions at the latest, because others add to it too.
COUNT_EVERY = 1000


class SamCache:
    """Embeddings of one image encoder in a folder; workers `load`, the training process `complete`s batches.

    Args:
        folder: DIR; made if it is not there.
        encoder_key: names the encoder, see `encoder_key`.
        shape, dtype: of one embedding, (prompt_embed_dim, grid, grid).
        max_gb: nothing is added to a folder of this size, in 10^9 bytes; None: no limit. The limit is soft: each
            process counts the folder now and then, not at every addition, and may pass it by its share.
        num_writers: processes that add at the same time.
        together: every process has to encode when one does; ZeRO-3 needs it, see `complete`.

    Raises:
        ValueError: the folder cannot be written.
    """

    def __init__(
        self,
        folder: str | Path,
        encoder_key: str,
        *,
        shape: tuple[int, int, int],
        dtype: torch.dtype,
        max_gb: float | None = None,
        num_writers: int = 1,
        together: bool = False,
    ) -> None:
        self.folder = Path(folder)
        self.encoder_key = encoder_key
        self.shape = tuple(shape)
        self.dtype = dtype
        self.max_bytes = None if max_gb is None else int(max_gb * GIGABYTE)
        self.num_writers = num_writers
        self.together = together
        self._allowance = 0  # bytes that may be added before the folder is counted again
        self._closed = False  # full, or not writable any more: said once, then nothing is added
        writable_folder(self.folder / encoder_key, "--sam_cache")

    @classmethod
    def of(
        cls,
        sam: SamSegmenter,
        folder: str | Path,
        *,
        max_gb: float | None = None,
        num_writers: int = 1,
        together: bool = False,
    ) -> SamCache:
        """The cache of this SAM; its weights must be whole, as they are before `deepspeed.initialize`."""
        return cls(
            folder,
            encoder_key(sam),
            shape=(sam.settings.prompt_embed_dim, *sam.settings.grid_size),
            dtype=sam.image_encoder.pos_embed.dtype,
            max_gb=max_gb,
            num_writers=num_writers,
            together=together,
        )

    def path(self, key: str) -> Path:
        return self.folder / self.encoder_key / key[:2] / f"{key}{SUFFIX}"

    def load(self, key: str) -> Tensor | None:
        """The embedding (prompt_embed_dim, grid, grid), mapped from its file; None when it has to be computed.

        A file that is damaged, or not the one that belongs here, is named in the log and counts as missing.
        """
        path = self.path(key)
        try:
            return self._read(path, key)
        except FileNotFoundError:
            return None
        except (ValueError, OSError, SafetensorError) as problem:
            logger.warning("%s is not the embedding it should be (%s); encoded again", path, problem)
            return None

    def store(self, key: str, embedding: Tensor) -> bool:
        """Write an entry unless it is there or the folder is full; returns whether it was written.

        A damaged file is replaced, also in a full folder. What the file system refuses is said once, and nothing
        is added any more: training goes on without.
        """
        path = self.path(key)
        replaces = path.exists()
        if self._is_good(path, key) if replaces else self._closed:  # there, when another process was quicker
            return False
        embedding = embedding.detach().cpu().contiguous()
        content = save({NAME: embedding}, {"key": key, "crc32": str(checksum(embedding))})
        temporary = path.with_name(f".{key}.{socket.gethostname()}.{os.getpid()}")
        try:
            if not replaces and not self._has_room(len(content)):
                return False
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(content)
            # No fsync: after a crash the checksum tells a file whose content never reached the disk.
            temporary.replace(path)
        except OSError as problem:
            temporary.unlink(missing_ok=True)
            self._close(f"{self.folder} takes no more SAM embeddings ({problem.strerror})")
            return False
        return True

    def complete(self, batch: Batch, sam: SamSegmenter) -> Batch:
        """The batch with `sam_embeddings` of all its images, on the device of its tensors, and no `sam_images`.

        Images that Collate did not find here are encoded in one call and stored. Under ZeRO-3 the encoder's weights
        are divided among the processes, which gather them layer by layer: when one process encodes, all must.
        """
        inputs = batch.inputs
        pixels, known = inputs.sam_images, inputs.sam_embeddings
        if self.together and pixels is None and _any_process(False, inputs.clip_images.device):
            sam.encode(inputs.clip_images.new_zeros(1, 3, 1, 1), [(1, 1)])  # only to take part
        elif self.together and pixels is not None:
            _any_process(True, pixels.device)
        if pixels is None:
            return batch
        missing = batch.sam_missing
        fresh = sam.encode(pixels, [inputs.resized_sizes[index] for index in missing])
        for index, embedding in zip(missing, fresh, strict=True):
            self.store(batch.sam_keys[index], embedding)
        if known is not None:
            of_missing, of_known = iter(fresh), iter(known)
            fresh = torch.stack(
                [next(of_missing if index in missing else of_known) for index in range(len(batch.sam_keys))]
            )
        return replace(batch, inputs=replace(inputs, sam_images=None, sam_embeddings=fresh))

    def describe(self) -> str:
        """What the folder holds, for the log."""
        pictures, _ = _measure(self.folder / self.encoder_key)
        limit = f", of {self.max_bytes / GIGABYTE:g} allowed" if self.max_bytes is not None else ""
        return (
            f"SAM's embeddings of {pictures} pictures are in {self.folder} "
            f"({self._num_bytes() / GIGABYTE:.2f} GB with those of other weights{limit})"
        )

    def _read(self, path: Path, key: str) -> Tensor:
        """The embedding as a memory map of the file; ValueError where it is another's or damaged."""
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if list(file.keys()) != [NAME] or metadata.get("key") != key:
                raise ValueError("it was written for something else")
            embedding = file.get_tensor(NAME)
        if tuple(embedding.shape) != self.shape or embedding.dtype != self.dtype:
            raise ValueError(f"it holds {embedding.dtype} {tuple(embedding.shape)}")
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
        """Whether `size` bytes may be added.

        A process may add its part of half of what is left, then counts again: with n processes of the same pace,
        the limit is passed by less than n entries, and the folder is counted a few dozen times in all.
        """
        if self.max_bytes is not None and self._allowance < size:
            left = self.max_bytes - self._num_bytes()
            self._allowance = max(size, min(left // (2 * self.num_writers), COUNT_EVERY * size))
            if left < size:
                self._close(
                    f"{self.folder} is full (--sam_cache_gb {self.max_bytes / GIGABYTE:g}); "
                    "pictures that are not in it are encoded every time"
                )
        self._allowance -= size
        return not self._closed

    def _num_bytes(self) -> int:
        """What the entries of all encoders take."""
        return sum(_measure(encoder)[1] for encoder in _subfolders(self.folder))

    def _close(self, reason: str) -> None:
        if not self._closed:
            logger.warning("%s", reason)
        self._closed = True


def _any_process(encodes: bool, device: torch.device) -> bool:
    flag = torch.tensor(int(encodes), device=device)
    dist.all_reduce(flag, dist.ReduceOp.MAX)
    return bool(flag)


def _subfolders(folder: Path) -> list[Path]:
    with os.scandir(folder) as found:
        return [Path(entry.path) for entry in found if entry.is_dir()]


def _measure(encoder: Path) -> tuple[int, int]:
    """Number of entries of one encoder, and their bytes; few of them are looked at, because they are alike."""
    count = size = 0
    try:
        for folder in _subfolders(encoder):
            names = [name for name in os.listdir(folder) if name.endswith(SUFFIX)]
            count += len(names)
            size = max([size, *(folder.joinpath(name).stat().st_size for name in names[:1])])
    except (FileNotFoundError, PermissionError):  # somebody is removing it, or it is none of ours
        pass
    return count, count * size
