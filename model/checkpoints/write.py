"""Writes a folder of weights: one shard in memory at a time, verified, complete or not there at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from safetensors.torch import save_file
from torch import Tensor

from model.checkpoints.lazy import StoredWeights
from model.checkpoints.weights import SAFETENSORS_FILE
from model.errors import UserError
from model.write_errors import writing

SHARD_SIZE = 2_000_000_000  # bytes, the largest file of a written folder


def plan_shards(
    sizes: Mapping[str, int], shard_size: int, file: str = SAFETENSORS_FILE
) -> dict[str, list[str]]:
    """File -> the weights in it, at most `shard_size` bytes (more only for a single weight).

    Args:
        sizes: bytes of each weight.
        file: name of the file if there is only one; several are numbered as Hugging Face does.
    """
    stem, suffix = os.path.splitext(file)
    return split_state_dict_into_shards_factory(
        sizes, get_storage_size=int, filename_pattern=f"{stem}{{suffix}}{suffix}", max_shard_size=shard_size
    ).filename_to_tensors


def write_shards(
    folder: Path,
    sizes: Mapping[str, int],
    read: Callable[[str], Tensor],
    *,
    file: str = SAFETENSORS_FILE,
    shard_size: int = SHARD_SIZE,
    progress: Callable[[int], object] = lambda _: None,
) -> dict[str, str]:
    """Writes the weights that `sizes` names, with an index if they take more than one file.

    Args:
        sizes: bytes of each weight.
        read: gives a weight by name.
        file: see `plan_shards`; its suffix is the format: .safetensors, or .bin as `torch.save` writes it.
        shard_size: bytes of one file, and so of what is in memory at a time.
        progress: called with the bytes of every weight that was read.

    Returns:
        The hash of each weight, for `verify`.
    """
    hashes, place = {}, {}
    for name_of_file, names in plan_shards(sizes, shard_size, file).items():
        shard = {}
        for name in names:
            # A view of a mapped file would keep it in memory, and `torch.save` would write all that is viewed.
            shard[name] = read(name).cpu().clone(memory_format=torch.contiguous_format)
            hashes[name] = hash_of(shard[name])
            place[name] = name_of_file
            progress(sizes[name])
        if name_of_file.endswith(".safetensors"):
            save_file(shard, folder / name_of_file, metadata={"format": "pt"})
        else:
            torch.save(shard, folder / name_of_file)
    if len(set(place.values())) > 1:
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": place}
        content = json.dumps(index, indent=2, sort_keys=True) + "\n"
        (folder / f"{file}.index.json").write_text(content, encoding="utf-8")
    return hashes


def verify(
    folder: Path, hashes: Mapping[str, str], *, progress: Callable[[int], object] = lambda _: None
) -> None:
    """Reads a folder back and compares the hash of each weight.

    Raises:
        ValueError: a weight is missing, left over, or not what was written.
    """
    stored = StoredWeights(folder)
    wrong = sorted(stored.places.keys() ^ hashes.keys())
    for name in stored.in_file_order(hashes):
        value = stored.read(name)
        progress(value.nbytes)
        if hash_of(value) != hashes[name]:
            wrong.append(name)
    if wrong:
        raise UserError(
            f"{len(wrong)} weights of {folder} are not what was written ({', '.join(wrong[:3])}); is the disk sound?"
        )


def hash_of(value: Tensor) -> str:
    """SHA-256 of dtype, shape and bytes."""
    digest = hashlib.sha256(f"{value.dtype}{tuple(value.shape)}".encode())
    digest.update(value.detach().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def require_space(place: Path, num_bytes: int) -> None:
    """Raises a UserError if fewer bytes are free."""
    free = shutil.disk_usage(place).free
    if free < num_bytes:
        raise UserError(
            f"merging into {place} needs {num_bytes / 1e9:.1f} GB and {free / 1e9:.1f} GB are free; make room, or "
            "choose another --save_path"
        )


@contextmanager
def finished_folder(target: Path) -> Iterator[Path]:
    """A temporary folder to fill, which is synced and renamed to `target` if no error occurs and removed otherwise.

    Raises:
        WriteError: it could not be written.
    """
    unfinished = target.with_name(f".{target.name}.{os.getpid()}.unfinished")
    try:
        with writing(unfinished, "; nothing is left of it", shown=target):
            unfinished.mkdir(parents=True)
            yield unfinished
            _complete(unfinished, target)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _complete(unfinished: Path, target: Path) -> None:
    """Bring all files to the disk, then give the folder its name."""
    mode = (unfinished / "config.json").stat().st_mode
    for file in unfinished.rglob("*"):
        if file.is_file():
            file.chmod(mode)  # safetensors writes files that only their owner may read
            with file.open("rb") as content:
                os.fsync(content.fileno())
    if target.exists():
        target.rmdir()  # empty, as checked before
    unfinished.rename(target)
