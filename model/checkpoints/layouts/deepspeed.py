"""Reads what `DeepSpeedEngine.save_checkpoint` writes. DeepSpeed's own reader would unpickle anything.

A checkpoint folder holds a tag's folder for each save and `latest`, the name of the newest tag. In a tag's
folder: `*_model_states.pt` (weights in training precision, shapes, buffers) and, with ZeRO, an
`*_optim_states.pt` for each rank with its part of the float32 weights. Stages 1 and 2 flatten each parameter group
into one vector and cut it into equal parts; stage 3 cuts every parameter into equal parts. Without ZeRO the weights
are whole, under `module`.
Source of the layout: deepspeed/utils/zero_to_fp32.py, 0.19.8.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from model.checkpoints.layouts.base import CHECKPOINT_FOLDER
from model.checkpoints.manifest import MANIFEST, damage, newest_save, saves
from model.checkpoints.weights import read_torch_file
from model.errors import UserError

Shapes = dict[str, Sequence[int]]


def is_checkpoint(folder: Path) -> bool:
    """Whether the folder is a DeepSpeed checkpoint, or the folder of one of its tags."""
    return (folder / "latest").is_file() or any(folder.glob("*_model_states.pt")) or bool(saves(folder))


def checkpoint_folder(path: Path) -> Path | None:
    """The checkpoint at `path`: itself, also if it is the folder of one tag, or that of a run; None if none."""
    return next((folder for folder in (path, path / CHECKPOINT_FOLDER) if is_checkpoint(folder)), None)


def describe(path: Path, tag: str | None = None) -> str | None:
    """What kind of checkpoint it is, from the names of its files; None for something else."""
    folder = checkpoint_folder(path)
    if folder is None:
        return None
    folder = tag_folder(folder, tag)
    num_ranks = len(list(folder.glob("*_optim_states.pt")))
    if not num_ranks:
        return f"DeepSpeed checkpoint {folder.name}, ZeRO-0"
    divided = any(folder.glob("zero_pp_rank_*_model_states.pt"))
    return f"DeepSpeed checkpoint {folder.name}, ZeRO-{3 if divided else '1 or 2'}, {num_ranks} processes"


def read(path: Path, tag: str | None = None) -> dict[str, Tensor]:
    """Weights and buffers of a checkpoint under the trained model's names, float32 where DeepSpeed has that.

    Args:
        path: checkpoint folder, the folder of one tag, or the folder of a run.
        tag: which save; the newest if not given.

    Raises:
        FileNotFoundError: the tag is not there, or files of some ranks are missing.
        UserError: the files do not fit together, or are not those that its manifest lists.
    """
    folder = whole_save(checkpoint_folder(path) or path, tag)
    with torch.serialization.safe_globals(safe_globals()):
        models = [read_torch_file(path) for path in in_rank_order(folder.glob("*_model_states.pt"))]
        optimizers = [
            read_torch_file(path)["optimizer_state_dict"]
            for path in in_rank_order(folder.glob("*_optim_states.pt"))
        ]
    if not models:
        raise FileNotFoundError(f"{folder} has no *_model_states.pt; was the checkpoint copied completely?")
    if not all(
        isinstance(models[0].get(name), kind) for name, kind in (("module", dict), ("buffer_names", list))
    ):
        raise UserError(
            f"{folder}: its *_model_states.pt are not DeepSpeed's; pass the folder that train_ds.py wrote"
        )
    module, buffer_names = models[0]["module"], set(models[0]["buffer_names"])
    weights = {name: value for name, value in module.items() if name in buffer_names}
    if not optimizers:
        if models[0]["param_shapes"] is not None:
            raise FileNotFoundError(
                f"{folder} has no *_optim_states.pt, which hold the weights of a ZeRO run"
            )
        return {**weights, **module}
    stage = int(optimizers[0]["zero_stage"])
    counts = optimizers[0]["partition_count"]
    num_ranks = max(counts) if isinstance(counts, list) else counts
    if num_ranks != len(optimizers):
        raise FileNotFoundError(
            f"{folder} has the optimizer files of {len(optimizers)} processes but {num_ranks} wrote it; "
            "copy all of them, and no file of an older run with another number of processes"
        )
    merge = merge_stage_3 if stage == 3 else merge_stage_2
    weights.update(frozen_weights(models, stage))
    weights.update(merge(models[0]["param_shapes"], optimizers, source=str(folder)))
    for name, same_as in (models[0]["shared_params"] or {}).items():
        if same_as in weights:
            weights[name] = weights[same_as]
    return weights


def safe_globals() -> list[Any]:
    """What DeepSpeed's files hold besides tensors and containers: four classes that are harmless to construct.

    Early releases of Python 3.11 write the member of an enumeration as a call of `getattr`, which would give access
    to anything; `_zero_stage` stands in for it.
    """
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    return [LossScaler, DynamicLossScaler, ZeroStageEnum, fragment_address, (_zero_stage, "builtins.getattr")]


def _zero_stage(owner: Any, name: str) -> Any:
    """`getattr` of ZeRO's stages, and of nothing else."""
    from deepspeed.runtime.zero.config import ZeroStageEnum

    if owner is not ZeroStageEnum or name not in ZeroStageEnum.__members__:
        raise UnpicklingError(f"getattr({owner!r}, {name!r}) is not a stage of ZeRO")
    return ZeroStageEnum[name]


def tag_folder(folder: Path, tag: str | None) -> Path:
    """The folder of a tag, by names alone; of the newest save if none is given."""
    if tag is None:
        return next(iter(saves(folder)), folder)
    if not (folder / tag).is_dir():
        tags = sorted(path.name for path in folder.iterdir() if any(path.glob("*_model_states.pt")))
        raise FileNotFoundError(f"{folder} has no checkpoint {tag!r}; there are: {', '.join(tags) or 'none'}")
    return folder / tag


def whole_save(folder: Path, tag: str | None) -> Path:
    """As `tag_folder`, with every file checked against the save's manifest; without a tag the newest whole save.

    Raises:
        UserError: the save, or every one, is damaged.
    """
    if tag is None and (found := newest_save(folder)):
        return found.folder
    folder = tag_folder(folder, tag)
    if (folder / MANIFEST).is_file() and (problem := damage(folder)):
        raise UserError(f"{folder}: {problem}; copy it again, or take another save (--tag, or ckpt_best)")
    return folder


def in_rank_order(paths: Iterable[Path]) -> list[Path]:
    """Sorted by the numbers in the names: rank 2 before rank 10."""
    return sorted(paths, key=lambda path: [int(number) for number in re.findall(r"\d+", path.name)])


def merge_stage_2(
    groups: Sequence[Shapes], optimizers: Sequence[dict[str, Any]], *, source: str
) -> dict[str, Tensor]:
    """Stages 1 and 2: a group's parameters lie in one flat vector, cut into one part for each rank."""
    parts = [optimizer["single_partition_of_fp32_groups"] for optimizer in optimizers]
    paddings = optimizers[0].get("param_alignment_paddings")
    weights = {}
    for index, shapes in enumerate(groups):
        flat = torch.cat([part[index] for part in parts])
        # Newer versions align every parameter and record the gaps; absent means none.
        gaps = paddings[index] if paddings is not None else [0] * len(shapes)
        offset = 0
        for (name, shape), gap in zip(shapes.items(), gaps, strict=True):
            size = math.prod(shape)
            if offset + size > len(flat):
                raise UserError(
                    f"{source}: the flat weights end before {name}; its files are of different runs"
                )
            weights[name] = flat[offset : offset + size].view(*shape).clone()
            offset += size + gap
        # What is left is the padding that makes the vector divisible among the ranks.
        if len(flat) - offset > 2 * len(parts):
            raise UserError(
                f"{source}: {len(flat) - offset} values of parameter group {index} belong to no weight"
            )
    return weights


def merge_stage_3(
    groups: Sequence[Shapes], optimizers: Sequence[dict[str, Any]], *, source: str
) -> dict[str, Tensor]:
    """Stage 3: every parameter is cut into one part a rank; the parts of a rank lie one after another."""
    # Groups only limit how long a flat vector may get, so the ranks' vectors are joined.
    flats = [
        torch.cat([group.flatten() for group in optimizer["fp32_flat_groups"]]) for optimizer in optimizers
    ]
    shapes = {name: shape for group in groups for name, shape in group.items()}
    weights, offset = {}, 0
    for name, shape in shapes.items():
        size = math.ceil(math.prod(shape) / len(flats))
        parts = [flat[offset : offset + size] for flat in flats]
        if any(len(part) < size for part in parts):
            raise UserError(f"{source}: the flat weights end before {name}; its files are of different runs")
        weights[name] = torch.cat(parts)[: math.prod(shape)].view(*shape).clone()
        offset += size
    if any(len(flat) != offset for flat in flats):
        raise UserError(f"{source}: {len(flats[0]) - offset} values a rank belong to no weight")
    return weights


def frozen_weights(models: Sequence[dict[str, Any]], stage: int) -> dict[str, Tensor]:
    """Weights that did not train, where the checkpoint was written with them."""
    shapes = models[0].get("frozen_param_shapes") or {}
    weights = {}
    for name, shape in shapes.items():
        parts = [model["frozen_param_fragments"][name] for model in (models if stage == 3 else models[:1])]
        weights[name] = torch.cat([part.flatten() for part in parts])[: math.prod(shape)].view(*shape)
    return weights
