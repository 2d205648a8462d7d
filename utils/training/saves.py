"""One save of a training run: written under a temporary name, verified, renamed; then older ones are deleted.

runs/EXP/ckpt_model/partial_global_step500/   while it is written; of no use to anybody
runs/EXP/ckpt_model/global_step500/           whole: manifest.json was written before the folder got this name
runs/EXP/ckpt_model/latest                    for DeepSpeed's tools
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist

from model.checkpoints.layouts.base import SETTINGS_FOLDER
from model.checkpoints.manifest import (
    LATEST,
    MANIFEST,
    TAG,
    archive_damage,
    describe_files,
    read_latest,
    saves,
)
from model.errors import UserError
from utils.common.commands import one_line
from utils.common.config_files import save_config
from utils.common.distributed import gather_objects, is_main_process, world_size
from utils.common.files import sync_folder, write_whole
from utils.config.data import absolute_own_data
from utils.config.training import TrainConfig
from utils.training.engine import Engine
from utils.training.health import check_weights
from utils.training.records import RETRY_SECONDS

logger = logging.getLogger(__name__)

PARTIAL, REPLACED = "partial_", "replaced_"
ALONE = 0  # saves to keep besides the newest: none, not even of a later step
TORCH_WRITER = re.compile("PytorchStreamWriter|inline_container|write")
Value = TypeVar("Value")


def write_save(
    engine: Engine,
    config: TrainConfig,
    folder: Path,
    state: dict[str, Any],
    manifest: dict[str, Any],
    keep: int,
) -> None:
    """Save weights, optimizer and `state`; then all but the newest `keep` saves go. A collective call.

    After weights that begin anew from an older save, later ones stay, unless `keep` is `ALONE`.

    Args:
        state: what to store beside the weights; "step" names the save.
        manifest: what its manifest holds besides step and files.

    Raises:
        DivergedError: a weight is not finite.
        UserError: nothing could be written for --disk_patience minutes; older saves are as they were.
    """
    check_weights(engine, state["step"])
    keep_trying(config, lambda: _try_to_save(engine, config, folder, state, manifest, keep))


def write_patiently(config: TrainConfig, write: Callable[[], object]) -> None:
    """Write something on the first process, as patiently as a save. A collective call."""
    keep_trying(config, lambda: _agreed(lambda: write() if is_main_process() else None))


def keep_trying(config: TrainConfig, attempt: Callable[[], str | None]) -> None:
    """Try to write until it works. A collective call.

    Args:
        attempt: None, or what hinders it; the same on every process.

    Raises:
        UserError: nothing could be written for --disk_patience minutes.
    """
    deadline = time.monotonic() + 60 * config.disk_patience
    while problem := attempt():
        if from_main(lambda: time.monotonic() >= deadline):
            raise UserError(
                f"{problem}; gave up after --disk_patience {config.disk_patience:g} minutes. Earlier saves are "
                "whole: make room, and the same command continues from the newest"
            )
        logger.error("%s; trying again for --disk_patience %g minutes", problem, config.disk_patience)
        time.sleep(RETRY_SECONDS)


def _try_to_save(
    engine: Engine,
    config: TrainConfig,
    folder: Path,
    state: dict[str, Any],
    manifest: dict[str, Any],
    keep: int,
) -> str | None:
    """None, or why it could not be written; the same on every process, and nothing is left of it then."""
    tag = f"global_step{state['step']}"
    partial = folder / f"{PARTIAL}{tag}"
    problem = _agreed(lambda: _prepare(engine, config, folder, partial) if is_main_process() else None)
    if problem is None:
        with recorded_errors(engine) as problems:
            # DeepSpeed would write `latest` in place: a kill at that moment leaves an empty one.
            engine.save_checkpoint(
                str(folder),
                tag=partial.name,
                client_state=state,
                save_latest=False,
                exclude_frozen_parameters=True,
            )
        problem = next((text for texts in gather_objects(problems) for text in texts), None)
    if problem is None:
        problem = _agreed(
            lambda: (
                _finish(folder, partial, {"step": state["step"], **manifest}, keep)
                if is_main_process()
                else None
            )
        )
    if problem is not None and is_main_process():
        shutil.rmtree(partial, ignore_errors=True)
    return problem


def _prepare(engine: Engine, config: TrainConfig, folder: Path, partial: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(partial, ignore_errors=True)
    _save_settings(engine, config, folder / SETTINGS_FOLDER)


def _save_settings(engine: Engine, config: TrainConfig, folder: Path) -> None:
    """Config, tokenizer, processor and run.yaml; every file is whole at any moment."""
    folder.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{PARTIAL}settings_", dir=folder.parent) as aside:
        engine.module.config.save_pretrained(aside)
        engine.module.processor.save_pretrained(aside)
        found_anywhere = replace(
            config,
            dataset=absolute_own_data(config.dataset, "||"),
            val_dataset_list=absolute_own_data(config.val_dataset_list, ","),
        )
        save_config(found_anywhere, Path(aside) / "run.yaml")
        for path in sorted(Path(aside).rglob("*")):
            target = folder / path.relative_to(aside)
            if path.is_dir():
                target.mkdir(exist_ok=True)
            else:
                _sync(path)
                os.replace(path, target)
    sync_folder(folder)


def _finish(folder: Path, partial: Path, manifest: dict[str, Any], keep: int) -> None:
    """Verify what was written, and give it its name."""
    for path in sorted(partial.rglob("*")):
        if path.is_file():
            _sync(path)
    for path in sorted(partial.glob("*.pt")):
        if wrong := archive_damage(path):
            raise UserError(f"{partial}: {wrong}, right after it was written; is the disk sound?")
    settings = describe_files(folder / SETTINGS_FOLDER)
    settings.pop("run.yaml", None)  # workers and folders may change
    content = {**manifest, "files": describe_files(partial), "settings": settings}
    write_whole(partial / MANIFEST, json.dumps(content, indent=1) + "\n")
    final = folder / partial.name.removeprefix(PARTIAL)
    replaced = folder / f"{REPLACED}{final.name}"
    if final.exists():
        shutil.rmtree(replaced, ignore_errors=True)
        os.rename(final, replaced)
    os.rename(partial, final)
    sync_folder(folder)
    make_newest(final, keep)


def make_newest(newest: Path, keep: int) -> None:
    """Write `latest`; then delete what this whole save made needless: older ones but `keep` - 1, unfinished ones."""
    folder = newest.parent
    if read_latest(folder) != newest.name:
        write_whole(folder / LATEST, newest.name)
    tag = TAG.fullmatch(newest.name)
    step = int(tag[1]) if tag else -1
    found = [(TAG.fullmatch(path.name), path) for path in saves(folder)]
    older = [
        path
        for match, path in found
        if match and (int(match[1]) < step or (keep == ALONE and path != newest))
    ]
    whole = [path for path in older if (path / MANIFEST).is_file()]
    needless = [path for path in older if path not in whole[: max(keep - 1, 0)]]
    for path in (*needless, *folder.glob(f"{PARTIAL}*"), *folder.glob(f"{REPLACED}*")):
        # First, so that nobody takes what is left of it for a save.
        (path / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(path)


def put_back_replaced(folder: Path) -> None:
    """After a kill between two renames of `_finish`: the older save of the same step gets its name again."""
    for path in folder.glob(f"{REPLACED}global_step*"):
        final = folder / path.name.removeprefix(REPLACED)
        if not final.exists():
            os.rename(path, final)


@contextmanager
def recorded_errors(engine: Engine) -> Iterator[list[str]]:
    """What hinders the engine's writing is collected: raised on one process, it would leave the others waiting."""
    problems: list[str] = []
    writes = [(engine.checkpoint_engine, "save"), (engine, "_copy_recovery_script")]
    writes = [(owner, name) for owner, name in writes if hasattr(owner, name)]

    def recording(write: Callable[..., Any]) -> Callable[..., Any]:
        def try_to_write(*arguments: Any, **named: Any) -> Any:
            try:
                return write(*arguments, **named)
            except (OSError, RuntimeError) as problem:
                # torch's writer raises RuntimeErrors, as does what has nothing to do with disks.
                if not isinstance(problem, OSError) and not TORCH_WRITER.search(str(problem)):
                    raise
                problems.append(_reason(problem, arguments))
                return None

        return try_to_write

    for owner, name in writes:
        setattr(owner, name, recording(getattr(owner, name)))
    try:
        yield problems
    except OSError as problem:
        problems.append(one_line(problem))
    finally:
        for owner, name in writes:
            delattr(owner, name)  # the class has the original


def _reason(problem: Exception, arguments: tuple[Any, ...]) -> str:
    path = next((value for value in arguments if isinstance(value, str | Path)), "")
    cause = problem.__context__ if isinstance(problem.__context__, OSError) else problem
    text = cause.strerror if isinstance(cause, OSError) and cause.strerror else one_line(problem)
    return f"{path}: cannot be written ({text})"


def first_problem(problem: str | None) -> str | None:
    """What hinders one of the processes, on all of them; None: nothing. A collective call."""
    return next((text for text in gather_objects(problem) if text), None)


def _agreed(work: Callable[[], object]) -> str | None:
    """Run something that may fail to write on some process; all get the first reason. A collective call."""
    problem = None
    try:
        work()
    except OSError as error:
        problem = one_line(error)
    return first_problem(problem)


def from_main(ask: Callable[[], Value]) -> Value:
    """What the first process answers, or its error, on all of them. A collective call."""
    answer: list[Any] = [None, None]
    if is_main_process():
        try:
            answer[0] = ask()
        except (UserError, OSError) as problem:
            answer[1] = problem
    if world_size() > 1:
        dist.broadcast_object_list(answer, src=0)
    if answer[1] is not None:
        raise answer[1]
    return answer[0]


def _sync(path: Path) -> None:
    with path.open("rb") as file, suppress(OSError):
        os.fsync(file.fileno())
