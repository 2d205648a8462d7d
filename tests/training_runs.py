"""The output of a training run, without training: a model with changed weights, its settings, its checkpoint."""

from __future__ import annotations

import math
from collections import OrderedDict
from pathlib import Path

import torch
import yaml
from torch import Tensor, nn

from model.checkpoints.load import load_model
from model.lasagna import LasagnaForConditionalGeneration
from model.lora import TARGET_PATTERN, add_lora, mark_trainable
from tests.tiny_weights import TinyFolders

RANK, ALPHA = 4, 32.0


def trained_model(
    folders: TinyFolders,
    *,
    base: tuple[Path, dict[str, str]] | None = None,
    rank: int = RANK,
    pattern: str = TARGET_PATTERN,
    dtype: torch.dtype = torch.float32,
) -> LasagnaForConditionalGeneration:
    """A model as after training: adapters beside the weights, every trainable weight changed.

    `base` is another model to start from, with the flags that it needs.
    """
    folder, flags = base or (folders.llava, folders.parts)
    model, _ = load_model(folder, dtype=dtype, **flags)
    model.vlm = add_lora(model.vlm, rank=rank, alpha=ALPHA, dropout=0.1, target_pattern=pattern)
    mark_trainable(model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model


def trainable(model: nn.Module) -> OrderedDict[str, Tensor]:
    """The weights that DeepSpeed saves."""
    return OrderedDict((n, p.detach().clone()) for n, p in model.named_parameters() if p.requires_grad)


def save_settings(
    folder: Path, model: LasagnaForConditionalGeneration, folders: TinyFolders, **changes: object
) -> None:
    """The settings that train_ds.py stores beside its checkpoints."""
    settings = folder / "lasagna"
    settings.mkdir(parents=True)
    model.config.save_pretrained(settings)
    model.processor.save_pretrained(settings)
    run = {"version": str(folders.llava), "lora_r": RANK, "lora_alpha": ALPHA, **folders.flags, **changes}
    (settings / "run.yaml").write_text(yaml.safe_dump(run))


def write_run(
    folder: Path, model: LasagnaForConditionalGeneration, folders: TinyFolders, **changes: object
) -> Path:
    """Writes trained weights as zero_to_fp32.py does, with the settings beside; returns the path of the weights."""
    save_settings(folder / "ckpt_model", model, folders, **changes)
    torch.save(trainable(model), folder / "pytorch_model.bin")
    return folder / "pytorch_model.bin"


def write_zero_checkpoint(
    folder: Path,
    model: nn.Module,
    *,
    stage: int,
    num_ranks: int,
    frozen: bool = False,
    tag: str = "global_step7",
) -> None:
    """A DeepSpeed checkpoint folder as `save_checkpoint` writes it, optionally with the frozen weights."""
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum

    (folder / tag).mkdir(parents=True)
    (folder / "latest").write_text(tag)
    weights = trainable(model)
    buffers = {n: b for n, b in model.named_buffers() if n in model.state_dict()}
    names = list(weights)
    groups = [names[: len(names) // 3], names[len(names) // 3 :]]
    state = {
        "module": OrderedDict(**buffers, **{n: w.to(torch.bfloat16) for n, w in weights.items()}),
        "buffer_names": list(buffers),
        "param_shapes": [OrderedDict((n, weights[n].shape) for n in group) for group in groups],
        "frozen_param_shapes": None,
        "shared_params": {},
        "frozen_param_fragments": None,
        "ds_version": "0.19.8",
    }
    if stage == 0:
        state |= {"param_shapes": None, "shared_params": None, "module": OrderedDict(**buffers, **weights)}
        torch.save(state, folder / tag / "mp_rank_00_model_states.pt")
        return
    still = {n: p.detach() for n, p in model.named_parameters() if frozen and not p.requires_grad}
    for rank in range(num_ranks):
        if frozen:
            state["frozen_param_shapes"] = {name: weight.shape for name, weight in still.items()}
            state["frozen_param_fragments"] = {
                name: cut(weight.flatten(), num_ranks)[rank].clone() if stage == 3 else weight
                for name, weight in still.items()
            }
        optimizer = {
            "zero_stage": ZeroStageEnum(stage),
            "partition_count": num_ranks if stage == 3 else [num_ranks] * len(groups),
            "loss_scaler": LossScaler(scale=1.0),
        }
        if stage == 3:
            parts = [cut(weights[name].flatten(), num_ranks)[rank] for name in names]
            optimizer["fp32_flat_groups"] = [torch.cat(parts[:5]), torch.cat(parts[5:])]
        else:
            flats = [torch.cat([weights[name].flatten() for name in group]) for group in groups]
            optimizer["single_partition_of_fp32_groups"] = [cut(flat, num_ranks)[rank] for flat in flats]
        prefix = f"zero_pp_rank_{rank}_mp_rank_00"
        torch.save({"optimizer_state_dict": optimizer}, folder / tag / f"bf16_{prefix}_optim_states.pt")
        if stage == 3:
            torch.save(state, folder / tag / f"{prefix}_model_states.pt")
    if stage < 3:
        torch.save(state, folder / tag / "mp_rank_00_model_states.pt")


def cut(vector: Tensor, num_parts: int) -> tuple[Tensor, ...]:
    """Splits into equal parts, the last one padded with zeros."""
    size = math.ceil(len(vector) / num_parts)
    return torch.cat([vector, vector.new_zeros(size * num_parts - len(vector))]).split(size)
