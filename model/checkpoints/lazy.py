"""Reading a checkpoint that is larger than memory, one weight at a time.

Files are memory-mapped: a weight that is not read takes no memory, and what was read is released when its file is
closed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor

from model.checkpoints.weights import is_zip, open_safetensors, read_weight_file, weight_files

# Pages of a mapped file count as memory of this process until the file is closed, so it is reopened after this number
# of bytes.
RELEASE_AFTER = 1_000_000_000


class StoredWeights:
    """The weights of a folder (one file, or shards with an index) or of one file, read by name.

    Attributes:
        places: the file of each weight.
        shapes: the shape of each weight.

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

    @property
    def num_values(self) -> int:
        """Values of all weights together."""
        return sum(shape.numel() for shape in self.shapes.values())

    def read(self, name: str) -> Tensor:
        """One weight as it is stored. Copy it and drop the reference: a mapped tensor keeps its file in memory."""
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

    def in_file_order(self, names: Iterable[str]) -> list[str]:
        """Those of `names` that are stored, grouped by file, so that each file is opened once."""
        return sorted(
            (name for name in names if name in self.places), key=lambda name: str(self.places[name])
        )


def is_mapped(file: Path) -> bool:
    """Whether the file is memory-mapped; the format that torch wrote before version 1.6 is read as a whole."""
    return file.suffix == ".safetensors" or is_zip(file)


def shapes_in(file: Path) -> dict[str, torch.Size]:
    """Names and shapes of a file's weights, without reading them."""
    if file.suffix == ".safetensors":
        with open_safetensors(file) as content:
            return {name: torch.Size(content.get_slice(name).get_shape()) for name in content.keys()}  # noqa: SIM118
    return {name: value.shape for name, value in read_weight_file(file).items()}
