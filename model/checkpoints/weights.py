"""Reading weight files of every kind, safely, and saying exactly what does not fit."""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel

from model.downloads import check_download
from model.errors import UserError
from model.files import read_json

# Index files (which shard holds which weight) and single files, in the order in which they are looked for.
INDEX_FILES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
NAMES_SHOWN = 8
# Where training scripts put weights, the likeliest first.
WRAPPERS = ("state_dict", "module", "model", "model_state_dict", "model_state", "net", "network", "weights", "params",
            "sam", "sam_model", "ema", "model_ema")  # fmt: skip
# What torch.load raises for files that are cut off, of another kind, or hold code.
READ_ERRORS = (pickle.UnpicklingError, struct.error, RuntimeError, EOFError, OSError, LookupError, ValueError)

# Which part of the model a weight belongs to, and what is probably wrong when only weights of that part do not fit.
PROBABLE_CAUSES = (
    (
        ("vision_tower", "multi_modal_projector"),
        "Is --vision_tower the CLIP that this LLaVA was trained with?",
    ),
    (("sam.",), "Is --vision_pretrained (sam_config of the folder's config.json) the SAM of these weights?"),
    (
        ("embed_tokens", "lm_head"),
        "Is the tokenizer, or --format, the one that these weights were trained with?",
    ),
)
OTHER_CAUSE = "Is --version a complete folder, with the config.json of its own weights?"


def read_torch_file(path: str | Path) -> dict[str, object]:
    """`torch.load` of a checkpoint that may hold nothing but tensors and plain containers.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a checkpoint, or holds code.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    check_download(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip(path))
    except READ_ERRORS as error:
        # Torch's refusal begins with the advice to run the file's code, and says at its end what was refused.
        refused = str(error).rpartition("WeightsUnpickler error:")[2].strip()
        reason = next(iter(refused.splitlines()), type(error).__name__)
        raise UserError(
            f"{path} is not a readable checkpoint of tensors (cut off, or it holds code): {reason}"
        ) from error


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
    """All weights of a .safetensors, .bin, .pt or .pth file.

    Out of what training scripts put around them: {"model": weights, "epoch": 3}, `WRAPPERS` in each other, and
    "module." in front of every name.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is cut off, holds code, or holds no weights.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        with open_safetensors(path) as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    content = unwrapped(read_torch_file(path))
    weights = content.items() if isinstance(content, dict) else ()
    weights = {name: value for name, value in weights if isinstance(value, Tensor)}
    if not weights:
        raise UserError(
            f"{path} holds no weights by name but {what_is_in(content)}; pass a checkpoint's weight file"
        )
    while all(name.startswith("module.") for name in weights):  # of DataParallel
        weights = without_prefix(weights, "module.")
    return weights


def unwrapped(content: object) -> object:
    """What is inside `WRAPPERS`, however many are around it."""
    while isinstance(content, dict) and not any(isinstance(value, Tensor) for value in content.values()):
        inner = next((content[name] for name in WRAPPERS if isinstance(content.get(name), dict)), None)
        if inner is None:
            break
        content = inner
    return content


def what_is_in(content: object) -> str:
    """The first entries of a file's content, for messages: "epoch (int), optimizer (dict)"."""
    if not isinstance(content, dict):
        return f"a {type(content).__name__}"
    entries = [f"{name} ({type(value).__name__})" for name, value in content.items()]
    return ", ".join(entries[:NAMES_SHOWN]) + (" ..." if entries[NAMES_SHOWN:] else "") or "nothing"


@contextmanager
def open_safetensors(path: Path) -> Iterator[Any]:
    """An open .safetensors file; its header says how long the file must be.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is cut off, or something else.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    check_download(path)
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise UserError(f"{path} is cut off or no safetensors file ({error}); download it again") from error


def weight_files(folder: str | Path) -> list[Path]:
    """The weight files of a folder: shards with an index or one file, safetensors before .bin.

    Raises:
        FileNotFoundError: no weights, or a shard that the index names is missing.
    """
    folder = Path(folder)
    for name in INDEX_FILES:
        if (folder / name).is_file():
            index = read_json(folder / name).get("weight_map")
            if not isinstance(index, dict):
                raise UserError(f"{folder / name} has no 'weight_map'; copy or download it again")
            paths = [folder / shard for shard in sorted(set(index.values()))]
            for path in paths:
                if not path.is_file():
                    raise FileNotFoundError(
                        f"{folder / name} names {path.name}, which is not there; copy or download it again"
                    )
            return paths
    for name in WEIGHT_FILES:
        if (folder / name).is_file():
            return [folder / name]
    raise FileNotFoundError(f"{folder} has no weights; looked for {', '.join((*INDEX_FILES, *WEIGHT_FILES))}")


def read_folder(folder: str | Path) -> dict[str, Tensor]:
    """All weights of a folder's files; errors as in `weight_files` and `read_weight_file`."""
    weights: dict[str, Tensor] = {}
    for path in weight_files(folder):
        weights.update(read_weight_file(path))
    return weights


def check_files(folder: str | Path) -> None:
    """Whether every weight file can be opened, before another library reads them; errors as in `read_folder`."""
    for path in weight_files(folder):
        if path.suffix == ".safetensors":
            with open_safetensors(path):
                continue
        read_torch_file(path)  # memory-mapped: only its table of contents is read


def without_prefix(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The weights whose name starts with `prefix`, under the rest of their name."""
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


@dataclass(frozen=True)
class Misfit:
    """A row of the table of weights that do not fit; an empty text stands for a weight that is not there."""

    name: str
    expected: str
    found: str


class MisfitError(UserError):
    """Weights do not fit the model. The message is a table: name, expected, found."""


def shape_of(value: Tensor | Sequence[int]) -> str:
    return str(tuple(value.shape if isinstance(value, Tensor) else value))


def raise_for_misfits(rows: Sequence[Misfit], *, source: str, hint: str = "") -> None:
    """Raises a MisfitError with the table of `rows` and what is probably wrong, if there are any.

    Args:
        hint: what is probably wrong; derived from the names if empty.
    """
    if not rows:
        return
    counts = {
        "missing": sum(not row.found for row in rows),
        "unexpected": sum(not row.expected for row in rows),
        "of another shape": sum(bool(row.found and row.expected) for row in rows),
    }
    summary = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    shown = [("name", "expected", "found")]
    shown += [(row.name, row.expected or "-", row.found or "-") for row in rows[:NAMES_SHOWN]]
    widths = [max(len(cells[column]) for cells in shown) for column in range(2)]
    lines = [f"  {name:{widths[0]}}  {expected:{widths[1]}}  {found}" for name, expected, found in shown]
    if len(rows) > NAMES_SHOWN:
        lines.append(f"  and {len(rows) - NAMES_SHOWN} more")
    table = "\n".join(lines)
    cause = hint or probable_cause([row.name for row in rows])
    raise MisfitError(f"the weights of {source} do not fit the model: {summary}\n{table}\n{cause}")


def probable_cause(names: Sequence[str]) -> str:
    """What is probably wrong when exactly the weights of these names do not fit."""
    for parts, cause in PROBABLE_CAUSES:
        if all(any(part in name for part in parts) for name in names):
            return cause
    return OTHER_CAUSE


def check_keys(missing: Iterable[str], unexpected: Iterable[str], *, source: str, hint: str = "") -> None:
    """Raises a MisfitError that lists weights missing from `source` or left over in it, if there are any."""
    rows = [Misfit(name, "a weight", "") for name in sorted(missing)]
    rows += [Misfit(name, "", "a weight") for name in sorted(unexpected)]
    raise_for_misfits(rows, source=source, hint=hint)


def check_fit(
    expected: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    *,
    source: str,
    hint: str = "",
    required: Collection[str] | None = None,
) -> None:
    """Raises a MisfitError unless `weights` have the names and shapes of `expected`.

    Args:
        required: names that must be there; all of `expected` if not given.
    """
    required = expected.keys() if required is None else required
    rows = [Misfit(name, shape_of(expected[name]), "") for name in sorted(set(required) - weights.keys())]
    rows += [Misfit(name, "", shape_of(weights[name])) for name in sorted(weights.keys() - expected.keys())]
    rows += [
        Misfit(name, shape_of(expected[name]), shape_of(value))
        for name, value in weights.items()
        if name in expected and value.shape != expected[name].shape
    ]
    raise_for_misfits(rows, source=source, hint=hint)


def load_strictly(
    module: torch.nn.Module, weights: Mapping[str, Tensor], *, source: str, hint: str = ""
) -> None:
    """Copies weights into a module of the same names and shapes.

    Raises:
        MisfitError: weights are missing, left over or of another shape.
    """
    check_fit(module.state_dict(), weights, source=source, hint=hint)
    module.load_state_dict(dict(weights))


def load_pretrained(
    model_class: type[PreTrainedModel], folder: Path | None, *, source: str, hint: str = "", **kwargs: Any
) -> PreTrainedModel:
    """`model_class.from_pretrained(folder, **kwargs)`, strictly: stock loading starts missing weights anew.

    Raises:
        MisfitError: weights are missing, left over or of another shape.
    """
    model, info = model_class.from_pretrained(
        folder, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
    )
    check_loading_info(info, source=source, hint=hint)
    return model


def check_loading_info(info: Mapping[str, Any], *, source: str, hint: str = "") -> None:
    """Raises a MisfitError if Hugging Face's `output_loading_info` says that anything did not fit."""
    rows = [Misfit(name, "a weight", "") for name in sorted(info["missing_keys"])]
    rows += [Misfit(name, "", "a weight") for name in sorted(info["unexpected_keys"])]
    rows += [
        Misfit(name, shape_of(own), shape_of(stored)) for name, stored, own in sorted(info["mismatched_keys"])
    ]
    raise_for_misfits(rows, source=source, hint=hint)
