"""Checkpoints of a training run: DeepSpeed's folder of trainable weights, and what it takes to rebuild the model.

runs/EXP/ckpt_model/global_step500/, latest, zero_to_fp32.py     the newest (saves.py writes it)
runs/EXP/ckpt_model/lasagna/                                     config, tokenizer, processor, run.yaml
runs/EXP/ckpt_best/                                              the same for the best validation
runs/EXP/validation.json                                         up to which step epochs are validated, and the best

A run may be killed at any moment. A save gets its final name when it is complete; older saves are deleted after that.
A validation is recorded when its weights are kept, so an interrupted one is repeated on resume.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from model.checkpoints.layouts.base import CHECKPOINT_FOLDER, SETTINGS_FOLDER
from model.checkpoints.layouts.deepspeed import safe_globals
from model.checkpoints.manifest import Found, newest_save, saves
from model.errors import UserError
from model.files import read_json, read_text, read_yaml, split_lines
from model.strict_loading import check_keys
from utils.common.distributed import is_main_process
from utils.common.files import write_whole
from utils.common.paths import same_place
from utils.common.settings import STARTED_IN, path_settings
from utils.config.training import TrainConfig
from utils.data.counts import DataCounts
from utils.training.engine import Engine
from utils.training.health import not_finite, shown
from utils.training.progress import BadSteps, Progress, Score, Validated
from utils.training.saves import from_main, make_newest, put_back_replaced, write_patiently, write_save

logger = logging.getLogger(__name__)

BEST_FOLDER = "ckpt_best"
VALIDATION_FILE = "validation.json"
# Settings that may differ on resume: duration, paths, speed, and what is measured. All others determine the weights
# and must stay the same.
FREE = (
    "epochs", "dataset_dir", "fast_resize", "workers", "sam_cache", "sam_cache_gb", "attn_implementation",
    "gradient_checkpointing", "compile", "num_threads", "profile", "local_rank", "max_bad_fraction", "max_bad_steps",
    "val_dataset_list", "no_eval", "val_batch_size", "max_val_samples", "classes_per_query",
    "log_base_dir", "exp_name", "auto_resume", "save_every_minutes", "save_every_steps", "keep_last", "disk_patience",
)  # fmt: skip


def save_checkpoint(engine: Engine, config: TrainConfig, progress: Progress) -> None:
    """Save the newest weights, the optimizer, and how far the run is. A collective call."""
    state = {
        "step": progress.step,
        "counted": progress.counts.state(),
        "bad_steps": progress.bad.total,
        "owes_validation": progress.owes_validation,
    }
    folder = config.run_dir / CHECKPOINT_FOLDER
    write_save(engine, config, folder, state, manifest_of(config), keep=config.keep_last)


def save_best(engine: Engine, config: TrainConfig, step: int, score: Score | None) -> None:
    """Save the weights of the best validation so far; None: of no validation. A collective call."""
    state = {
        "step": step,
        "best_score": score.value if score else None,
        "best_measured": score.measured if score else None,
    }
    write_save(engine, config, config.run_dir / BEST_FOLDER, state, manifest_of(config), keep=1)


def save_validated(config: TrainConfig, validated: Validated) -> None:
    """Record up to which step the run is validated. A collective call."""
    text = json.dumps(asdict(validated)) + "\n"
    write_patiently(config, lambda: write_whole(config.run_dir / VALIDATION_FILE, text))


def read_validated(config: TrainConfig, step: int) -> Validated:
    """Up to which step a run at `step` is validated; remains of a killed run beside its best save are removed.

    The best save is read too: the run may have been killed between saving and recording. A record of later steps
    belongs to an earlier run in this folder. A record that cannot be read is ignored: the best save holds its score.
    """
    path = config.run_dir / VALIDATION_FILE
    try:
        noted = Validated(**read_json(path))
    except (TypeError, UserError):
        logger.warning("%s cannot be read and is written anew", path)
        noted = Validated()
    if noted.step > step:
        noted = Validated()
    best = from_main(lambda: _best_save(config))
    if best is None:
        return Validated(step=noted.step)
    state = read_state(best.folder)
    if state["step"] > step:
        return noted
    if is_main_process():
        make_newest(best.folder, keep=1)
    if state["best_score"] is None:
        return Validated(step=noted.step)
    return Validated(
        step=max(noted.step, state["step"]),
        best_step=state["step"],
        best_score=state["best_score"],
        best_measured=state.get("best_measured"),
    )


def _best_save(config: TrainConfig) -> Found | None:
    folder = config.run_dir / BEST_FOLDER
    put_back_replaced(folder)
    try:
        return newest_save(folder)
    except UserError as problem:
        logger.warning("%s; the next validation makes a new one", problem)
        return None


def check_run(config: TrainConfig, num_processes: int) -> Found | None:
    """The save to continue from, None to start anew; checked before anything is built. A collective call.

    Raises:
        UserError: there is a run of this name that must not, or cannot, be continued like this.
    """
    folder = config.run_dir / CHECKPOINT_FOLDER
    found = from_main(lambda: _save_to_continue(config, folder))
    if found is None:
        return None
    before = read_state(found.folder)["dp_world_size"]
    if before != num_processes:
        raise UserError(
            f"run {config.exp_name!r} was started with {before} processes, now there are {num_processes}; start as "
            f"many as before, or choose another --exp_name"
        )
    return found


def _save_to_continue(config: TrainConfig, folder: Path) -> Found | None:
    put_back_replaced(folder)
    if not saves(folder):
        return None
    if not config.auto_resume:
        raise UserError(
            f"{folder} holds an earlier run; choose another --exp_name, or leave out --no_auto_resume to continue it"
        )
    settings = folder / SETTINGS_FOLDER / "run.yaml"
    is_known = settings.is_file() and settings.stat().st_size > 0
    if is_known:
        check_same_run(config, settings)
    found = newest_save(folder, lambda manifest: _of_another_run(config, manifest))
    if not is_known and found is not None and "config" not in found.manifest:
        raise UserError(
            f"{settings} is missing or empty, which says how the run was started; choose another --exp_name"
        )
    return found


def manifest_of(config: TrainConfig) -> dict[str, Any]:
    """What a manifest says about the run: a hash of the settings that it cannot continue without."""
    places = path_settings(TrainConfig) | {"dataset"}
    names = sorted(name for name in asdict(config) if name not in FREE and name not in places)
    return {"config": {"names": names, "sha256": _hash_of(config, names)}}


def _of_another_run(config: TrainConfig, manifest: dict[str, Any]) -> str | None:
    told = manifest.get("config")
    if not isinstance(told, dict) or not isinstance(told.get("names"), list):
        return "its manifest does not say which run it is of"
    now = asdict(config)
    if _hash_of(config, [name for name in told["names"] if name in now]) != told.get("sha256"):
        return "it is of a run with other settings"
    return None


def _hash_of(config: TrainConfig, names: list[str]) -> str:
    values = {name: getattr(config, name) for name in names}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def check_same_run(config: TrainConfig, path: Path) -> None:
    """ValueError when a run would continue with settings that its checkpoint was not made with."""
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


def read_state(save: Path) -> dict[str, Any]:
    """What DeepSpeed stored beside the weights in the folder of a save; tensors stay on disk."""
    return _load_safely(str(min(save.glob("*_model_states.pt"))), mmap=True)


def resume(engine: Engine, config: TrainConfig, found: Found | None) -> Progress:
    """Continue from a save; returns how far the run is.

    Raises:
        UserError: the save does not fit the model, or holds weights that are not finite.
    """
    if found is None:
        return Progress()
    engine.checkpoint_engine.load = _load_safely
    # ZeRO-3 restores weights from the optimizer's parts; there, the module holds none to compare.
    load_module = _load_trainable if config.zero_stage < 3 else None
    path, state = engine.load_checkpoint(
        str(found.folder.parent), tag=found.folder.name, load_module_strict=False, custom_load_fn=load_module
    )
    if path is None:
        raise UserError(f"{found.folder} cannot be read; choose another --exp_name")
    if wrong := not_finite(engine):
        raise UserError(
            f"{found.folder} holds weights that are not finite: {shown(wrong)}; move this folder elsewhere, and the "
            "run continues from an older save or from its start"
        )
    step = int(state["step"])
    if is_main_process():
        make_newest(found.folder, config.keep_last)
    logger.info("continues %s at step %d", found.folder, step)
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
    """Truncate losses.jsonl after `step`: the steps after a run's last save are repeated."""
    if not log.is_file():
        return
    kept = [f"{line}\n" for line in split_lines(read_text(log)) if _is_up_to(line, step)]
    write_whole(log, "".join(kept))


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
