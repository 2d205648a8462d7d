"""What zero_to_fp32.py writes: one file of weights, or a folder of shards, which may be called pytorch_model.bin."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from model.checkpoints.weights import INDEX_FILES, WEIGHT_FILES, read_folder, read_weight_file


def describe(path: Path, tag: str | None = None) -> str | None:
    """Words for messages and the log; None for something else. A tag means nothing here."""
    if path.is_file() or any((path / name).exists() for name in (*WEIGHT_FILES, *INDEX_FILES)):
        return "weights that zero_to_fp32.py wrote"
    return None


def read(path: Path, tag: str | None = None) -> dict[str, Tensor]:
    """The weights; errors as in `read_weight_file` and `read_folder`."""
    if path.is_file():
        return read_weight_file(path)
    # zero_to_fp32.py . FOLDER/pytorch_model.bin
    inside = next((path / name for name in WEIGHT_FILES if (path / name).is_dir()), path)
    return read_folder(inside)
