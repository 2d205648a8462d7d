"""Whether a save is one of this run: which settings a run may be continued with."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any

from model.errors import UserError
from model.files import read_yaml
from utils.common.command_line import STARTED_IN
from utils.common.paths import same_place
from utils.common.settings import path_settings
from utils.config.training import TrainConfig
from utils.training.bases import check_bases, fingerprints

# Settings that may differ on resume: duration, paths, speed, what is measured, and how a step is divided among
# processes (step_size.py). All others determine the weights and must stay the same.
FREE = (
    "epochs", "dataset_dir", "pad_to_multiple_of", "fast_resize", "workers", "sam_cache", "sam_cache_gb",
    "index_cache", "shard_cache", "shard_cache_gb",
    "attn_implementation", "gradient_checkpointing", "compile", "cuda_graphs", "num_threads", "profile", "local_rank",
    "max_bad_fraction", "max_bad_steps",
    "val_dataset_list", "no_eval", "val_batch_size", "max_val_samples", "classes_per_query",
    "log_base_dir", "exp_name", "auto_resume", "resume_weights_only",
    "save_every_minutes", "save_every_steps", "keep_last", "disk_patience",
    "batch_size", "grad_accumulation_steps", "rank_timeout", "report_to", "print_config", "dry_run",
)  # fmt: skip
# With --resume_weights_only also what only the optimizer feels, which starts anew then.
OF_OPTIMIZER = ("lr", "warmup_steps", "beta1", "beta2", "weight_decay", "grad_clip")


def free_settings(config: TrainConfig) -> frozenset[str]:
    """The settings that a run may be continued with other values of."""
    return frozenset(FREE + OF_OPTIMIZER if config.resume_weights_only else FREE)


def manifest_of(config: TrainConfig) -> dict[str, Any]:
    """What a manifest says about the run: hashes of what it cannot continue without, settings and base weights."""
    values = asdict(config)
    left_out = path_settings(TrainConfig) | {"dataset", *FREE, *OF_OPTIMIZER}
    groups = {"config": sorted(values.keys() - left_out), "optimizer": sorted(OF_OPTIMIZER)}
    hashes = {group: {"names": names, "sha256": _hash_of(values, names)} for group, names in groups.items()}
    return {**hashes, "bases": fingerprints(config)}


def of_another_run(
    config: TrainConfig, manifest: Mapping[str, Any], *, weights_only: bool = False
) -> str | None:
    """Why a save with this manifest is of another run; None if it is of this one.

    Args:
        weights_only: whatever the optimizer was; so with --resume_weights_only.
    """
    values = asdict(config)
    for group in ("config",) if weights_only or config.resume_weights_only else ("config", "optimizer"):
        told = manifest.get(group)
        if told is None and group == "optimizer":  # an older save
            continue
        if not isinstance(told, dict) or not isinstance(told.get("names"), list):
            return "its manifest does not say which run it is of"
        names = [name for name in told["names"] if isinstance(name, str) and name in values]
        if _hash_of(values, names) != told.get("sha256"):
            return "it is of a run with other settings"
    return None


def _hash_of(values: Mapping[str, Any], names: Iterable[str]) -> str:
    chosen = {name: values[name] for name in names}
    return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()


def check_same_run(config: TrainConfig, path: Path, bases: Mapping[str, str] = MappingProxyType({})) -> None:
    """ValueError when a run would continue with settings, or from weights, that its checkpoint was not made with.

    Args:
        path: the settings that it was made with.
        bases: fingerprints of the weights that it started from, where they are known: they may have been moved.
    """
    saved, free = read_yaml(path), free_settings(config)
    for name in (STARTED_IN, "dataset", *path_settings(TrainConfig)):
        if not isinstance(value := saved.get(name), str | None):
            raise UserError(
                f"{path}: {name} is a {type(value).__name__}, not a text; copy the run's settings again"
            )
    started_in = saved.get(STARTED_IN) or ""
    moved = {
        name for name, value in fingerprints(config).items() if bases.get(name) == value and saved.get(name)
    }
    changed = [
        f"--{name} was {saved[name]!r}, is {now!r}"
        for name, now in asdict(config).items()
        if name in saved
        and name not in free
        and name not in moved
        and not _is_same(name, saved[name], now, started_in)
    ]
    if changed:
        raise UserError(
            f"run {config.exp_name!r} was started with other settings ({'; '.join(changed)}); "
            f"choose another --exp_name, or give the settings that it had{_optimizer_hint(changed)}"
        )
    check_bases(config, bases)


def _optimizer_hint(changed: Iterable[str]) -> str:
    only_optimizer = all(entry.split()[0].removeprefix("--") in OF_OPTIMIZER for entry in changed)
    return "; --resume_weights_only continues with these and a fresh optimizer" if only_optimizer else ""


def _is_same(name: str, before: Any, now: Any, started_in: str) -> bool:
    """Whether a setting is what it was; a path may be written in another way."""
    if name == "dataset":
        return _same_data(before, now, started_in)
    if name in path_settings(TrainConfig) and before and now:
        return same_place(os.path.join(started_in, before), now)
    return before == now


def _same_data(before: str | None, now: str, started_in: str) -> bool:
    """Whether two values of --dataset name the same sources, own data by whatever path."""
    earlier, later = _sources(before or "", started_in), _sources(now, "")
    return len(earlier) == len(later) and all(
        one == other or _is_moved(one, other) for one, other in zip(earlier, later, strict=True)
    )


def _sources(text: str, folder: str) -> list[tuple[str, ...]]:
    """(source,), or (kind, ":", absolute path, "|", what follows) of own data; relative paths count from `folder`."""
    entries: list[tuple[str, ...]] = []
    for part in text.split("||"):
        kind, colon, rest = part.strip().partition(":")
        path, bar, fields = rest.partition("|")
        place = os.path.realpath(os.path.join(folder, os.path.expanduser(path)))
        entries.append((kind, colon, place, bar, fields) if colon else (kind,))
    return entries


def _is_moved(before: tuple[str, ...], now: tuple[str, ...]) -> bool:
    """Whether own data lie elsewhere by now under the same name, and no longer where they lay."""
    if len(before) != 5 or len(now) != 5 or (*before[:2], *before[3:]) != (*now[:2], *now[3:]):
        return False
    return os.path.basename(before[2]) == os.path.basename(now[2]) and not os.path.exists(before[2])
