"""Reading weight files of every kind, safely, and saying exactly what does not fit."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel

# Index files (which shard holds which weight) and single files, in the order in which they are looked for.
INDEX_FILES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
NAMES_SHOWN = 8


def read_torch_file(path: str | Path) -> dict[str, object]:
    """`torch.load` of a checkpoint that may hold nothing but tensors and plain containers.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a checkpoint, or holds code.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip(path))
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"{path} is not a readable checkpoint of tensors: {reason}") from error


class ExactBuffers(nn.Module):
    """A module whose buffers follow it to another device but not to another dtype.

    `model.bfloat16()`, which DeepSpeed calls, would round rotary frequencies and SAM's position matrix: the angle of
    token 600 would be off by up to a radian, and a folder that is loaded again would not have that error.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ExactBuffers:
        before = [
            (module, name, value)
            for module in self.modules()
            for name, value in module._buffers.items()
            if value is not None
        ]
        super()._apply(fn, recurse)
        for module, name, value in before:
            if module._buffers[name].dtype != value.dtype:
                module._buffers[name] = value.to(module._buffers[name].device)
        return self


def is_zip(path: Path) -> bool:
    """Whether `torch.save` wrote the file as a zip archive (since 1.6), which can be memory-mapped."""
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def read_weight_file(path: str | Path) -> dict[str, Tensor]:
    """All weights of a .safetensors, .bin, .pt or .pth file, out of a `state_dict` or `module` around it."""
    path = Path(path)
    if path.suffix == ".safetensors":
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist")
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    content = read_torch_file(path)
    for wrapper in ("state_dict", "module"):
        if isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    return {name: value for name, value in content.items() if isinstance(value, Tensor)}


def read_folder(folder: str | Path) -> dict[str, Tensor]:
    """All weights of a folder: one file or shards with an index, safetensors before .bin.

    Raises:
        FileNotFoundError: no weights, or a shard that the index names is missing.
    """
    folder = Path(folder)
    for name in INDEX_FILES:
        if (folder / name).is_file():
            index = json.loads((folder / name).read_text(encoding="utf-8"))["weight_map"]
            weights: dict[str, Tensor] = {}
            for shard in sorted(set(index.values())):
                if not (folder / shard).is_file():
                    raise FileNotFoundError(
                        f"{folder / name} names {shard}, which is not there; copy or download it again"
                    )
                weights.update(read_weight_file(folder / shard))
            return weights
    for name in WEIGHT_FILES:
        if (folder / name).is_file():
            return read_weight_file(folder / name)
    raise FileNotFoundError(f"{folder} has no weights; looked for {', '.join((*INDEX_FILES, *WEIGHT_FILES))}")


def without_prefix(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The weights whose name starts with `prefix`, under the rest of their name."""
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def check_keys(missing: Iterable[str], unexpected: Iterable[str], *, source: str, hint: str = "") -> None:
    """Raises a ValueError that lists weights missing from `source` or left over in it, if there are any."""
    problems = []
    for word, names in (("missing", sorted(missing)), ("unexpected", sorted(unexpected))):
        if names:
            more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
            problems.append(f"{len(names)} {word}: {', '.join(names[:NAMES_SHOWN])}{more}")
    if problems:
        message = f"the weights of {source} do not fit the model; {'; '.join(problems)}"
        raise ValueError(message + (f". {hint}" if hint else ""))


def load_strictly(
    module: torch.nn.Module, weights: Mapping[str, Tensor], *, source: str, hint: str = ""
) -> None:
    """Copies weights into a module of the same names and shapes.

    Raises:
        ValueError: weights are missing, left over or of another shape; it names them.
    """
    expected = module.state_dict()
    check_keys(expected.keys() - weights.keys(), weights.keys() - expected.keys(), source=source, hint=hint)
    check_shapes(expected, weights, source=source, hint=hint)
    module.load_state_dict(dict(weights))


def check_shapes(
    expected: Mapping[str, Tensor], weights: Mapping[str, Tensor], *, source: str, hint: str = ""
) -> None:
    """Raises a ValueError that lists the weights whose shape is not the expected one."""
    raise_for_shapes(
        [
            (name, value.shape, expected[name].shape)
            for name, value in weights.items()
            if name in expected and value.shape != expected[name].shape
        ],
        source=source,
        hint=hint,
    )


def load_pretrained(
    model_class: type[PreTrainedModel], folder: Path | None, *, source: str, hint: str = "", **kwargs: Any
) -> PreTrainedModel:
    """`model_class.from_pretrained(folder, **kwargs)`, strictly: stock loading starts missing weights anew.

    Raises:
        ValueError: weights are missing, left over or of another shape; it names them.
    """
    model, info = model_class.from_pretrained(
        folder, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
    )
    check_loading_info(info, source=source, hint=hint)
    return model


def check_loading_info(info: Mapping[str, Any], *, source: str, hint: str = "") -> None:
    """Raises a ValueError if Hugging Face's `output_loading_info` says that anything did not fit."""
    check_keys(info["missing_keys"], info["unexpected_keys"], source=source, hint=hint)
    raise_for_shapes(info["mismatched_keys"], source=source, hint=hint)


def raise_for_shapes(
    mismatched: Iterable[tuple[str, Sequence[int], Sequence[int]]], *, source: str, hint: str = ""
) -> None:
    """Raises a ValueError for weights (name, shape in `source`, shape in the model), if there are any."""
    wrong = [f"{name} is {tuple(stored)}, the model has {tuple(own)}" for name, stored, own in mismatched]
    if wrong:
        message = f"{len(wrong)} weights of {source} have another shape: {'; '.join(wrong[:NAMES_SHOWN])}"
        raise ValueError(message + (f". {hint}" if hint else ""))
