"""Checkpoints of a training run: DeepSpeed's folder of trainable weights, and what it takes to rebuild the model.

runs/EXP/ckpt_model/latest, global_step500/, zero_to_fp32.py     the newest
runs/EXP/ckpt_model/lasagna/                                     config, tokenizer, processor, run.yaml
runs/EXP/ckpt_best/                                              the same for the best validation
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from model.errors import UserError
from model.files import read_text, read_yaml, split_lines
from model.interop.deepspeed import safe_globals
from model.interop.training import CHECKPOINT_FOLDER, SETTINGS_FOLDER
from model.lasagna import LasagnaForConditionalGeneration
from model.weights import check_keys
from utils.config import TrainConfig
from utils.distributed import is_main_process
from utils.settings import save_config

logger = logging.getLogger(__name__)

BEST_FOLDER = "ckpt_best"
# What a run may continue with another value of: how long it goes on, where things are, what only costs time,
# and what is measured. Everything else decides the weights, and stays as it was.
FREE = (
    "epochs", "dataset_dir", "fast_resize", "workers", "sam_cache", "sam_cache_gb", "attn_implementation",
    "gradient_checkpointing", "compile", "num_threads", "profile", "local_rank", "max_bad_fraction",
    "val_dataset_list", "val_dataset", "no_eval", "val_batch_size", "max_val_samples", "classes_per_query",
    "log_base_dir", "exp_name", "auto_resume",
)  # fmt: skip


def save_checkpoint(engine: Any, config: TrainConfig, step: int, counted: Mapping[str, Any]) -> None:
    """Save the newest weights, the optimizer, and plain values about the data so far. A collective call."""
    _save(engine, config, config.run_dir / CHECKPOINT_FOLDER, {"step": step, "counted": dict(counted)})


def save_best(engine: Any, config: TrainConfig, step: int, score: float) -> None:
    """Save the weights of the best validation so far. A collective call."""
    _save(engine, config, config.run_dir / BEST_FOLDER, {"step": step, "best_score": score})


def _save(engine: Any, config: TrainConfig, folder: Path, state: dict[str, Any]) -> None:
    """The older save of the folder goes only after the new one is complete."""
    tag = f"global_step{state['step']}"
    if is_main_process():
        _save_settings(engine.module, config, folder / SETTINGS_FOLDER)
        # Stale files of another world size in the same tag would be read as part of this save.
        shutil.rmtree(folder / tag, ignore_errors=True)
    _wait_for_all()
    engine.save_checkpoint(str(folder), tag=tag, client_state=state, exclude_frozen_parameters=True)
    _wait_for_all()
    if is_main_process():
        for old in folder.glob("global_step*"):
            if old.name != tag:
                shutil.rmtree(old)


def _wait_for_all() -> None:
    if dist.is_initialized():
        dist.barrier()


def _save_settings(model: LasagnaForConditionalGeneration, config: TrainConfig, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(folder)
    model.processor.save_pretrained(folder)
    save_config(config, folder / "run.yaml")


def check_run(config: TrainConfig, num_processes: int) -> None:
    """Whether this run may start or continue; asked before anything is built.

    Raises:
        ValueError: there is a run of this name that must not, or cannot, be continued like this.
    """
    folder = config.run_dir / CHECKPOINT_FOLDER
    if not (folder / "latest").is_file():
        return
    if not config.auto_resume:
        raise UserError(
            f"{folder} holds an earlier run; choose another --exp_name, or leave out --no_auto_resume to continue it"
        )
    check_same_run(config, folder / SETTINGS_FOLDER / "run.yaml")
    before = read_state(folder)["dp_world_size"]
    if before != num_processes:
        raise UserError(
            f"run {config.exp_name!r} was started with {before} processes, now there are {num_processes}; start as "
            f"many as before, or choose another --exp_name"
        )


def check_same_run(config: TrainConfig, path: Path) -> None:
    """ValueError when a run would continue with settings that its checkpoint was not made with."""
    if not path.is_file():
        raise UserError(f"{path} is missing, which says how the run was started; choose another --exp_name")
    saved = read_yaml(path)
    changed = [
        f"--{name} was {saved[name]!r}, is {now!r}"
        for name, now in asdict(config).items()
        if name in saved and name not in FREE and saved[name] != now
    ]
    if changed:
        raise UserError(
            f"run {config.exp_name!r} was started with other settings ({'; '.join(changed)}); "
            "choose another --exp_name, or give the settings that it had"
        )


def read_state(folder: Path) -> dict[str, Any]:
    """What DeepSpeed saved beside the weights in a folder's newest save; tensors stay on disk."""
    tag = folder / (folder / "latest").read_text(encoding="utf-8").strip()
    paths = sorted(tag.glob("*_model_states.pt"))
    if not paths:
        raise UserError(f"{tag} has no *_model_states.pt; remove {folder} to start again")
    return _load_safely(str(paths[0]), mmap=True)


def resume(engine: Any, config: TrainConfig) -> tuple[int, float | None, dict[str, Any]]:
    """Continue from the run's newest checkpoint; returns (steps done, best score so far, what was `counted`).

    Raises:
        ValueError: the checkpoint does not fit the model.
    """
    folder, best = config.run_dir / CHECKPOINT_FOLDER, config.run_dir / BEST_FOLDER
    if not (folder / "latest").is_file():
        return 0, None, {}
    engine.checkpoint_engine.load = _load_safely
    # ZeRO-3 restores weights from the optimizer's parts; there, the module holds none to compare.
    load_module = _load_trainable if config.zero_stage < 3 else None
    path, state = engine.load_checkpoint(str(folder), load_module_strict=False, custom_load_fn=load_module)
    if path is None:
        raise UserError(f"{folder} cannot be read; remove it to start again")
    logger.info("continues %s at step %d", path, state["step"])
    best_score = read_state(best)["best_score"] if (best / "latest").is_file() else None
    return int(state["step"]), best_score, state.get("counted", {})


def forget_after(log: Path, step: int) -> None:
    """Keep the lines of a losses.jsonl up to `step`, those of a run that was stopped later are made again."""
    if not log.is_file():
        return
    kept = [f"{line}\n" for line in split_lines(read_text(log)) if _is_up_to(line, step)]
    unfinished = log.with_suffix(".unfinished")
    unfinished.write_text("".join(kept), encoding="utf-8")
    unfinished.replace(log)


def _is_up_to(line: str, step: int) -> bool:
    try:
        return json.loads(line)["step"] <= step
    except json.JSONDecodeError:  # the last line of a process that was killed
        return False


def _load_safely(path: str, map_location: Any = None, mmap: bool | None = None) -> Any:
    """What DeepSpeed's torch engine does, for data only: its own `load` runs any code in the file."""
    with torch.serialization.safe_globals(safe_globals()):
        return torch.load(path, map_location=map_location, mmap=mmap, weights_only=True)


def _load_trainable(src: dict[str, torch.Tensor], dst: torch.nn.Module) -> None:
    """Load the module's part of a checkpoint: what is missing must be exactly what is frozen."""
    missing, unexpected = dst.load_state_dict(src, strict=False)
    trainable = {name for name, parameter in dst.named_parameters() if parameter.requires_grad}
    check_keys(sorted(trainable & set(missing)), unexpected, source="the run's checkpoint")
