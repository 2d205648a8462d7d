"""Checkpoints of a training run: DeepSpeed's folder of trainable weights, and what it takes to rebuild the model.

runs/EXP/ckpt_model/global_step500/, latest, zero_to_fp32.py     the newest (saves.py writes it)
runs/EXP/ckpt_model/lasagna/                                     config, tokenizer, processor, run.yaml
runs/EXP/ckpt_best/                                              the same for the best validation
runs/EXP/validation.json                                         up to which step epochs are validated, and the best

A run may be killed at any moment. A save gets its final name when it is complete; older saves are deleted after that.
A validation is recorded when its weights are kept, so an interrupted one is repeated on resume.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from model.checkpoints.layouts.base import CHECKPOINT_FOLDER, SETTINGS_FOLDER
from model.checkpoints.layouts.deepspeed import safe_globals
from model.checkpoints.manifest import LATEST, TAG, Found, newest_save, readable_manifests, saves
from model.errors import UserError
from model.files import is_regular, read_json, read_text, read_yaml, split_lines
from model.strict_loading import check_keys
from utils.common.distributed import is_main_process, world_size
from utils.common.files import write_whole
from utils.config.training import TrainConfig
from utils.data.counts import DataCounts
from utils.training.bases import fingerprints, fingerprints_told
from utils.training.engine import Engine
from utils.training.health import not_finite, shown
from utils.training.progress import BadSteps, Progress, Score, Validated
from utils.training.records import LOSSES_FILE, SUMMARY_FILE, step_of
from utils.training.reshard import read_for_these_processes
from utils.training.same_run import check_same_run, manifest_of, of_another_run
from utils.training.saves import (
    ALONE,
    from_main,
    make_newest,
    put_back_replaced,
    write_patiently,
    write_save,
)
from utils.training.step_size import StepSize

logger = logging.getLogger(__name__)

BEST_FOLDER = "ckpt_best"
VALIDATION_FILE = "validation.json"


def save_checkpoint(engine: Engine, config: TrainConfig, progress: Progress) -> None:
    """Save the newest weights, the optimizer, and how far the run is. A collective call."""
    state = {
        "step": progress.step,
        "samples": progress.samples,
        "step_size": asdict(StepSize.of(config, world_size(), engine.gradient_accumulation_steps())),
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
    write_save(engine, config, config.run_dir / BEST_FOLDER, state, manifest_of(config), keep=ALONE)


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
        noted = Validated.from_dict(read_json(path))
    except (ValueError, OSError):
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


def check_run(config: TrainConfig) -> Found | None:
    """The save to continue from, None to start anew; checked before anything is built. A collective call.

    Raises:
        UserError: there is a run of this name that must not, or cannot, be continued like this.
    """
    folder = config.run_dir / CHECKPOINT_FOLDER
    return from_main(lambda: _save_to_continue(config, folder))


def check_files(run: Path) -> None:
    """UserError for a folder, a pipe or a device where a run has a file, which would be met after hours only."""
    for name in (LOSSES_FILE, VALIDATION_FILE, SUMMARY_FILE):
        is_regular(run / name)
    for folder in (CHECKPOINT_FOLDER, BEST_FOLDER):
        is_regular(run / folder / LATEST)


def _check_lost(folder: Path, best: Path) -> None:
    """UserError where a new run would replace what is left of an earlier one."""
    for path in folder.glob("global_step*"):
        if TAG.fullmatch(path.name):
            raise UserError(
                f"{path} is no folder but a link or a file, and is not followed; put the folder of the save there, "
                "or choose another --exp_name"
            )
    if saves(best):
        raise UserError(
            f"{folder} holds no save to continue, and {best} holds weights of an earlier run; copy {folder.name} "
            "back, or choose another --exp_name"
        )


def _check_best(config: TrainConfig) -> None:
    """UserError for best weights of another run, which would count as this one's."""
    for path, manifest in readable_manifests(config.run_dir / BEST_FOLDER):
        if manifest and (problem := of_another_run(config, manifest, weights_only=True)):
            raise UserError(f"{path}: {problem}; move it elsewhere")


def _save_to_continue(config: TrainConfig, folder: Path) -> Found | None:
    put_back_replaced(folder)
    fingerprints(config)  # now, as the files may have changed when the first save is made
    if not saves(folder):
        if config.resume_weights_only:
            raise UserError(
                f"--resume_weights_only: {folder} holds no save to continue; leave it out to start a new run, or "
                "name the run by --exp_name and --log_base_dir"
            )
        _check_lost(folder, config.run_dir / BEST_FOLDER)
        return None
    if not config.auto_resume:
        raise UserError(
            f"{folder} holds an earlier run; choose another --exp_name, or leave out --no_auto_resume to continue it"
        )
    settings = folder / SETTINGS_FOLDER / "run.yaml"
    is_known = is_regular(settings) and settings.stat().st_size > 0
    if is_known:
        check_same_run(config, settings, fingerprints_told(folder))
    found = newest_save(folder, lambda manifest: of_another_run(config, manifest))
    _check_best(config)
    if not is_known and found is not None and "config" not in found.manifest:
        raise UserError(
            f"{settings} is missing or empty, which says how the run was started; choose another --exp_name"
        )
    return found


def read_state(save: Path) -> dict[str, Any]:
    """What DeepSpeed stored beside the weights in the folder of a save; tensors stay on disk.

    Raises:
        UserError: another program wrote it.
    """
    state = _load_safely(str(min(save.glob("*_model_states.pt"))), mmap=True)
    if not isinstance(state, dict) or not all(
        isinstance(state.get(name), int) for name in ("step", "dp_world_size")
    ):
        raise UserError(
            f"{save}: its *_model_states.pt does not say at which step the run was; it is of another program. Take "
            "another save, or choose another --exp_name"
        )
    return state


def step_size_of(config: TrainConfig, found: Found) -> StepSize:
    """What an optimizer step of the run was when this save was made; a save of older versions does not say it."""
    state, settings = read_state(found.folder), found.folder.parent / SETTINGS_FOLDER / "run.yaml"
    if "step_size" in state:
        return StepSize(**state["step_size"])
    saved = read_yaml(settings) if is_regular(settings) else {}
    given = {
        name: saved.get(name, getattr(config, name)) for name in ("batch_size", "grad_accumulation_steps")
    }
    before = replace(config, **given)
    return StepSize.of(before, state["dp_world_size"], before.grad_accumulation_steps)


def resume(engine: Engine, config: TrainConfig, found: Found | None) -> Progress:
    """Continue from a save; returns how far the run is.

    The save may be one of another number of processes; with --resume_weights_only the optimizer starts anew.

    Raises:
        UserError: the save does not fit the model, or holds weights that are not finite.
    """
    if found is None:
        return Progress()
    before = step_size_of(config, found)
    engine.checkpoint_engine.load = _load_safely
    if before.num_processes != world_size() or config.resume_weights_only:
        read_for_these_processes(engine, found.folder, _load_safely, fresh=config.resume_weights_only)
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
        samples=state.get("samples", step * before.images),
        validated=validated,
        counts=DataCounts.from_state(state.get("counted", {})),
        bad=BadSteps(total=state.get("bad_steps", 0)),
        owes_validation=state.get("owes_validation", ends_epoch) and validated.step < step,
    )


def forget_after(log: Path, step: int) -> None:
    """Truncate losses.jsonl after `step`: the steps after a run's last save are repeated."""
    if not is_regular(log):
        return
    numbered = [(step_of(line), line) for line in split_lines(read_text(log))]
    kept = [f"{line}\n" for number, line in numbered if number is not None and number <= step]
    write_whole(log, "".join(kept))


def _load_safely(path: str, map_location: Any = None, mmap: bool | None = None) -> Any:
    """What DeepSpeed's torch engine does, for data only: its own `load` runs any code in the file."""
    with torch.serialization.safe_globals(safe_globals()):
        return torch.load(path, map_location=map_location, mmap=mmap, weights_only=True)


def _load_trainable(src: dict[str, torch.Tensor], dst: torch.nn.Module) -> None:
    """Load the module's part of a checkpoint: what is missing must be exactly what is frozen."""
    missing, unexpected = dst.load_state_dict(src, strict=False)
    trainable = {name for name, parameter in dst.named_parameters() if parameter.requires_grad}
    check_keys(sorted(trainable & set(missing)), unexpected, source="the run's checkpoint")
