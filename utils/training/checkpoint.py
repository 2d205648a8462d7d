"""Checkpoints of a training run: DeepSpeed's folder of trainable weights, and what it takes to rebuild the model.

runs/EXP/ckpt_model/latest, global_step500/, zero_to_fp32.py     the newest
runs/EXP/ckpt_model/lasagna/                                     config, tokenizer, processor, run.yaml
runs/EXP/ckpt_best/                                              the same for the best validation
runs/EXP/validation.json                                         up to which step epochs are validated, and the best

Every moment may be the last. `latest` is written, whole or not at all, when its save is complete; an older save goes
after that. A validation is noted when its weights are kept, so one that was killed is made up for on resume.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from model.checkpoints.layouts.deepspeed import safe_globals
from model.checkpoints.layouts.training import CHECKPOINT_FOLDER, SETTINGS_FOLDER
from model.errors import UserError
from model.files import read_json, read_text, read_yaml, split_lines
from model.lasagna import LasagnaForConditionalGeneration
from model.strict_loading import check_keys
from utils.common.distributed import is_main_process
from utils.common.paths import same_place
from utils.common.settings import STARTED_IN, path_settings, save_config
from utils.config.training import TrainConfig
from utils.data.counts import DataCounts
from utils.training.engine import Engine
from utils.training.health import check_weights
from utils.training.progress import BadSteps, Progress, Score, Validated

logger = logging.getLogger(__name__)

BEST_FOLDER = "ckpt_best"
VALIDATION_FILE = "validation.json"
LATEST = "latest"
# What a run may continue with another value of: how long it goes on, where things are, what only costs time,
# and what is measured. Everything else decides the weights, and stays as it was.
FREE = (
    "epochs", "dataset_dir", "fast_resize", "workers", "sam_cache", "sam_cache_gb", "attn_implementation",
    "gradient_checkpointing", "compile", "num_threads", "profile", "local_rank", "max_bad_fraction", "max_bad_steps",
    "val_dataset_list", "no_eval", "val_batch_size", "max_val_samples", "classes_per_query",
    "log_base_dir", "exp_name", "auto_resume",
)  # fmt: skip


def save_checkpoint(engine: Engine, config: TrainConfig, progress: Progress) -> None:
    """Save the newest weights, the optimizer, and how far the run is. A collective call."""
    state = {
        "step": progress.step,
        "counted": progress.counts.state(),
        "bad_steps": progress.bad.total,
        "owes_validation": progress.owes_validation,
    }
    _save(engine, config, config.run_dir / CHECKPOINT_FOLDER, state)


def save_best(engine: Engine, config: TrainConfig, step: int, score: Score | None) -> None:
    """Save the weights of the best validation so far; None: of no validation. A collective call."""
    state = {
        "step": step,
        "best_score": score.value if score else None,
        "best_measured": score.measured if score else None,
    }
    _save(engine, config, config.run_dir / BEST_FOLDER, state)


def _save(engine: Engine, config: TrainConfig, folder: Path, state: dict[str, Any]) -> None:
    """The older save of the folder goes only after the new one is complete."""
    check_weights(engine, state["step"])
    tag = f"global_step{state['step']}"
    if is_main_process():
        _save_settings(engine.module, config, folder / SETTINGS_FOLDER)
        # Stale files of another world size in the same tag would be read as part of this save.
        shutil.rmtree(folder / tag, ignore_errors=True)
    _wait_for_all()
    # DeepSpeed would write `latest` in place: a kill at that moment leaves an empty one.
    engine.save_checkpoint(
        str(folder), tag=tag, client_state=state, save_latest=False, exclude_frozen_parameters=True
    )
    _wait_for_all()
    if is_main_process():
        write_whole(folder / LATEST, tag)
        _remove_all_but(folder, tag)
    _wait_for_all()


def _remove_all_but(folder: Path, tag: str) -> None:
    for old in folder.glob("global_step*"):
        if old.name != tag:
            shutil.rmtree(old)


def write_whole(path: Path, text: str) -> None:
    """Write a file so that whoever reads it, also after a kill, finds the old text or the new one."""
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def save_validated(config: TrainConfig, validated: Validated) -> None:
    """Note how far the run is validated."""
    if is_main_process():
        write_whole(config.run_dir / VALIDATION_FILE, json.dumps(asdict(validated)) + "\n")


def read_validated(config: TrainConfig, step: int) -> Validated:
    """How far a run that stands at `step` is validated; what a kill left beside its best save is removed.

    The best save itself is asked too: a kill may come after it and before the note. A note of later steps is that
    of an earlier run in this folder.
    """
    path, best = config.run_dir / VALIDATION_FILE, config.run_dir / BEST_FOLDER
    try:
        noted = Validated(**read_json(path))
    except TypeError:
        raise UserError(
            f"{path} is not what was written; delete it, the newest epoch is then validated"
        ) from None
    if noted.step > step:
        noted = Validated()
    if not (best / LATEST).is_file():
        return Validated(step=noted.step)
    state = read_state(best)
    if state["step"] > step:
        return noted
    if is_main_process():
        _remove_all_but(best, (best / LATEST).read_text(encoding="utf-8").strip())
    if state["best_score"] is None:
        return Validated(step=noted.step)
    return Validated(
        step=max(noted.step, state["step"]),
        best_step=state["step"],
        best_score=state["best_score"],
        best_measured=state.get("best_measured"),
    )


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
    started_in = saved.get(STARTED_IN) or ""
    changed = [
        f"--{name} was {saved[name]!r}, is {now!r}"
        for name, now in asdict(config).items()
        if name in saved and name not in FREE and not _is_same(name, saved[name], now, started_in)
    ]
    if changed:
        raise UserError(
            f"run {config.exp_name!r} was started with other settings ({'; '.join(changed)}); "
            "choose another --exp_name, or give the settings that it had"
        )


def _is_same(name: str, before: Any, now: Any, started_in: str) -> bool:
    """Whether a setting is what it was; a path may be written in another way."""
    if name == "dataset":
        return _same_data(before, now, started_in)
    if name in path_settings(TrainConfig) and before and now:
        return same_place(os.path.join(started_in, before), now)
    return before == now


def _same_data(before: str, now: str, started_in: str) -> bool:
    """Whether two values of --dataset name the same sources, own data by whatever path."""

    def places(text: str, folder: str) -> list[tuple[str, ...]]:
        """(source,), or (kind, ":", absolute path and what follows it) of own data."""
        entries = [part.strip().partition(":") for part in text.split("||")]
        return [
            (kind, colon, os.path.realpath(os.path.join(folder, os.path.expanduser(path))))
            if colon
            else (kind,)
            for kind, colon, path in entries
        ]

    return places(before, started_in) == places(now, "")


def read_state(folder: Path) -> dict[str, Any]:
    """What DeepSpeed saved beside the weights in a folder's newest save; tensors stay on disk."""
    tag = folder / (folder / "latest").read_text(encoding="utf-8").strip()
    paths = sorted(tag.glob("*_model_states.pt"))
    if not paths:
        raise UserError(f"{tag} has no *_model_states.pt; remove {folder} to start again")
    return _load_safely(str(paths[0]), mmap=True)


def resume(engine: Engine, config: TrainConfig) -> Progress:
    """Continue from the run's newest checkpoint; returns how far the run is.

    Raises:
        ValueError: the checkpoint does not fit the model.
    """
    folder = config.run_dir / CHECKPOINT_FOLDER
    if not (folder / LATEST).is_file():
        return Progress()
    engine.checkpoint_engine.load = _load_safely
    # ZeRO-3 restores weights from the optimizer's parts; there, the module holds none to compare.
    load_module = _load_trainable if config.zero_stage < 3 else None
    path, state = engine.load_checkpoint(str(folder), load_module_strict=False, custom_load_fn=load_module)
    if path is None:
        raise UserError(f"{folder} cannot be read; remove it to start again")
    step = int(state["step"])
    if is_main_process():
        _remove_all_but(folder, f"global_step{step}")
    logger.info("continues %s at step %d", path, step)
    validated = read_validated(config, step)
    ends_epoch = step > 0 and step % config.steps_per_epoch == 0  # for runs older than the entry
    return Progress(
        step=step,
        validated=validated,
        counts=DataCounts.from_state(state.get("counted", {})),
        bad=BadSteps(total=state.get("bad_steps", 0)),
        owes_validation=state.get("owes_validation", ends_epoch) and validated.step < step,
    )


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
