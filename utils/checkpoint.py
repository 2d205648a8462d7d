"""Checkpoints of a training run: DeepSpeed's folder of trainable weights, and what it takes to rebuild the model.

runs/EXP/ckpt_model/latest, global_step500/, zero_to_fp32.py     the newest
runs/EXP/ckpt_model/lasagna/                                     config, tokenizer, processor, run.yaml
runs/EXP/ckpt_best/                                              the same for the best validation
"""

from __future__ import annotations

import logging
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import yaml

from model.interop.deepspeed import safe_globals
from model.interop.training import CHECKPOINT_FOLDER, SETTINGS_FOLDER
from model.lasagna import LasagnaForConditionalGeneration
from model.weights import check_keys
from utils.config import TrainConfig, save_config
from utils.distributed import is_main_process

logger = logging.getLogger(__name__)

BEST_FOLDER = "ckpt_best"
# A run continues only with the settings that its weights and its stream of samples came from.
FIXED = (
    "version", "vision_tower", "vision_pretrained", "format", "conv_type", "lora_r", "lora_alpha",
    "lora_target_modules", "precision", "zero_stage", "random_classes_list", "sequence_augmentation",
    "order_following", "seed", "batch_size", "grad_accumulation_steps",
)  # fmt: skip


def save_checkpoint(
    engine: Any, config: TrainConfig, step: int, *, best_score: float | None, best: bool
) -> None:
    """Save the newest weights, and the same as the best ones if they are. A collective call.

    The older save of a folder goes only after the new one is complete.
    """
    state = {"step": step, "best_score": best_score}
    folders = [CHECKPOINT_FOLDER, BEST_FOLDER] if best else [CHECKPOINT_FOLDER]
    for folder in (config.run_dir / name for name in folders):
        tag = f"global_step{step}"
        if is_main_process():
            _save_settings(engine.module, config, folder / SETTINGS_FOLDER)
            # Stale files of another world size in the same tag would be read as part of this save.
            shutil.rmtree(folder / tag, ignore_errors=True)
        if dist.is_initialized():
            dist.barrier()
        engine.save_checkpoint(str(folder), tag=tag, client_state=state, exclude_frozen_parameters=True)
        if dist.is_initialized():
            dist.barrier()
        if is_main_process():
            for old in folder.glob("global_step*"):
                if old.name != tag:
                    shutil.rmtree(old)


def _save_settings(model: LasagnaForConditionalGeneration, config: TrainConfig, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(folder)
    model.processor.save_pretrained(folder)
    save_config(config, folder / "run.yaml")


def resume(engine: Any, config: TrainConfig) -> tuple[int, float | None]:
    """Continue from the run's newest checkpoint; returns (steps done, best score so far).

    Raises:
        ValueError: the run was started with other settings, or the checkpoint does not fit the model.
    """
    folder = config.run_dir / CHECKPOINT_FOLDER
    if not (folder / "latest").is_file():
        return 0, None
    if not config.auto_resume:
        raise ValueError(
            f"{folder} holds an earlier run; choose another --exp_name, or leave out --no_auto_resume to continue it"
        )
    check_same_run(config, folder / SETTINGS_FOLDER / "run.yaml")
    engine.checkpoint_engine.load = _load_safely
    # ZeRO-3 restores weights from the optimizer's parts; there, the module holds none to compare.
    load_module = _load_trainable if config.zero_stage < 3 else None
    path, state = engine.load_checkpoint(str(folder), load_module_strict=False, custom_load_fn=load_module)
    if path is None:
        raise ValueError(f"{folder} cannot be read; remove it to start again")
    logger.info("continues %s at step %d", path, state["step"])
    return int(state["step"]), state["best_score"]


def _load_safely(path: str, map_location: Any = None) -> Any:
    """What DeepSpeed's torch engine does, for data only: its own `load` runs any code in the file."""
    with torch.serialization.safe_globals(safe_globals()):
        return torch.load(path, map_location=map_location, weights_only=True)


def _load_trainable(src: dict[str, torch.Tensor], dst: torch.nn.Module) -> None:
    """Load the module's part of a checkpoint: what is missing must be exactly what is frozen."""
    missing, unexpected = dst.load_state_dict(src, strict=False)
    trainable = {name for name, parameter in dst.named_parameters() if parameter.requires_grad}
    check_keys(sorted(trainable & set(missing)), unexpected, source="the run's checkpoint")


def check_same_run(config: TrainConfig, path: Path) -> None:
    """ValueError when a run would continue with settings that its checkpoint was not made with."""
    saved = yaml.safe_load(path.read_text(encoding="utf-8"))
    now = asdict(config)
    changed = [
        f"{name} was {saved.get(name)!r}, is {now[name]!r}" for name in FIXED if saved.get(name) != now[name]
    ]
    if changed:
        raise ValueError(
            f"run {config.exp_name!r} was started with other settings ({'; '.join(changed)}); "
            "choose another --exp_name, or give the settings that it had"
        )
