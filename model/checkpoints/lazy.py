"""Weights on disk, one at a time: reading a checkpoint that is larger than memory, writing one shard by shard.

Files are memory-mapped: a weight that is not read costs nothing, and one that was read is given back with its file.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from model.checkpoints.weights import is_zip, open_safetensors, read_weight_file, weight_files
from model.errors import UserError

# Pages of a mapped file count as this process's memory until the file is closed: it is opened again after this much.
RELEASE_AFTER = 1_000_000_000  # bytes
SHARD_SIZE = 2_000_000_000  # bytes, the most that one file of a written folder holds
SINGLE_FILE, SHARDS_INDEX = "model.safetensors", "model.safetensors.index.json"


class StoredWeights:
    """The weights of a folder (one file, or shards with an index) or of one file, read by name.

    Raises:
        FileNotFoundError: no weights, or a shard that the index names is missing.
        ValueError: a file is not a checkpoint of tensors.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.places: dict[str, Path] = {}
        self.shapes: dict[str, torch.Size] = {}
        self._file = ExitStack()
        self._name: Path | None = None
        self._get: Callable[[str], Tensor] | None = None
        self._num_read = 0
        for file in [self.path] if self.path.is_file() else weight_files(self.path):
            shapes = shapes_in(file)
            self.places |= dict.fromkeys(shapes, file)
            self.shapes |= shapes

    def read(self, name: str) -> Tensor:
        """One weight as it is stored. Convert or copy it and let it go: it keeps its file mapped."""
        file = self.places[name]
        if file != self._name or (self._num_read > RELEASE_AFTER and is_mapped(file)):
            self._open(file)
        assert self._get is not None
        value = self._get(name)
        self._num_read += value.nbytes
        return value

    def _open(self, file: Path) -> None:
        self._get = None  # first, so that only one file is mapped at a time
        self._file.close()
        if file.suffix == ".safetensors":
            self._get = self._file.enter_context(open_safetensors(file)).get_tensor
        else:
            self._get = read_weight_file(file).__getitem__
        self._name, self._num_read = file, 0


def is_mapped(file: Path) -> bool:
    """Whether reading it costs nothing until a weight is used; torch's old format is read as a whole."""
    return file.suffix == ".safetensors" or is_zip(file)


def shapes_in(file: Path) -> dict[str, torch.Size]:
    """Names and shapes of a file's weights, without reading them."""
    if file.suffix == ".safetensors":
        with open_safetensors(file) as content:
            return {name: torch.Size(content.get_slice(name).get_shape()) for name in content.keys()}  # noqa: SIM118
    return {name: value.shape for name, value in read_weight_file(file).items()}


def plan_shards(sizes: Mapping[str, int], shard_size: int = SHARD_SIZE) -> list[list[str]]:
    """Names in their order, cut into groups of at most `shard_size` bytes (more only for a single weight)."""
    shards: list[list[str]] = []
    free = 0
    for name, size in sizes.items():
        if not shards or size > free:
            shards.append([])
            free = shard_size
        shards[-1].append(name)
        free -= size
    return shards


def write_shards(
    folder: Path,
    sizes: Mapping[str, int],
    read: Callable[[str], Tensor],
    *,
    shard_size: int = SHARD_SIZE,
    progress: Callable[[int], object] = lambda _: None,
) -> dict[str, str]:
    """Writes the weights `sizes` names, one shard in memory at a time; Hugging Face's names for the files.

    Args:
        sizes: bytes of each weight, in the order in which they are written.
        read: gives a weight by name.
        progress: is told the bytes of every weight that was read.

    Returns:
        The hash of each weight, to be compared with what is read back.
    """
    shards = plan_shards(sizes, shard_size)
    hashes, place = {}, {}
    for number, names in enumerate(shards, start=1):
        file = SINGLE_FILE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        shard = {}
        for name in names:
            # Cloned if it is a view of a mapped file, which would stay mapped.
            shard[name] = read(name).clone(memory_format=torch.contiguous_format)
            hashes[name] = hash_of(shard[name])
            place[name] = file
            progress(sizes[name])
        save_file(shard, folder / file, metadata={"format": "pt"})
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": place}
        (folder / SHARDS_INDEX).write_text(
            json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8"
        )
    return hashes


def verify(
    folder: Path, hashes: Mapping[str, str], *, progress: Callable[[int], object] = lambda _: None
) -> None:
    """Reads a folder back.

    Raises:
        ValueError: a weight is missing, left over, or not what was written.
    """
    stored = StoredWeights(folder)
    wrong = sorted(stored.places.keys() ^ hashes.keys())
    for name in in_file_order(stored, hashes):
        value = stored.read(name)
        progress(value.nbytes)
        if hash_of(value) != hashes[name]:
            wrong.append(name)
    if wrong:
        raise UserError(
            f"{len(wrong)} weights of {folder} are not what was written ({', '.join(wrong[:3])}); is the disk sound?"
        )


def in_file_order(stored: StoredWeights, names: Iterable[str]) -> list[str]:
    """Those of `names` that are stored, a file's together."""
    return sorted(
        (name for name in names if name in stored.places), key=lambda name: str(stored.places[name])
    )


def hash_of(value: Tensor) -> str:
    """SHA-256 of dtype, shape and bytes."""
    digest = hashlib.sha256(f"{value.dtype}{tuple(value.shape)}".encode())
    digest.update(value.detach().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def require_space(place: Path, num_bytes: int) -> None:
    """Raises a ValueError when fewer bytes are free."""
    free = shutil.disk_usage(place).free
    if free < num_bytes:
        raise UserError(
            f"merging into {place} needs {num_bytes / 1e9:.1f} GB and {free / 1e9:.1f} GB are free; make room, or "
            "choose another --save_path"
        )


@contextmanager
def finished_folder(target: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `target` when all went well; else nothing is left.

    Raises:
        ValueError: it could not be written.
    """
    unfinished = target.with_name(f".{target.name}.{os.getpid()}.unfinished")
    try:
        unfinished.mkdir(parents=True)
        yield unfinished
        mode = (unfinished / "config.json").stat().st_mode
        for file in unfinished.rglob("*"):  # safetensors writes files that only their owner may read
            if file.is_file():
                file.chmod(mode)
        if target.exists():
            target.rmdir()  # empty, as checked before
        unfinished.rename(target)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{target} cannot be written: {error}; nothing is left of it") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
