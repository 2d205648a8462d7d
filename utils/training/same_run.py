"""Whether a save is one of this run: which settings a run may be continued with."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from model.errors import UserError
from model.files import read_yaml
from utils.common.command_line import STARTED_IN
from utils.common.paths import same_place
from utils.common.settings import path_settings
from utils.config.training import TrainConfig

# Settings that may differ on resume: duration, paths, speed, what is measured, and how a step is divided among
# processes (step_size.py). All others determine the weights and must stay the same.
FREE = (
    "epochs", "dataset_dir", "fast_resize", "workers", "sam_cache", "sam_cache_gb", "index_cache", "shard_cache",
    "shard_cache_gb",
    "attn_implementation", "gradient_checkpointing", "compile", "num_threads", "profile", "local_rank",
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
    """What a manifest says about the run: hashes of the settings that it cannot continue without."""
    values = asdict(config)
    left_out = path_settings(TrainConfig) | {"dataset", *FREE, *OF_OPTIMIZER}
    groups = {"config": sorted(values.keys() - left_out), "optimizer": sorted(OF_OPTIMIZER)}
    return {group: {"names": names, "sha256": _hash_of(values, names)} for group, names in groups.items()}


def of_another_run(config: TrainConfig, manifest: Mapping[str, Any]) -> str | None:
    """Why a save with this manifest is of another run; None if it is of this one."""
    values = asdict(config)
    for group in ("config",) if config.resume_weights_only else ("config", "optimizer"):
        told = manifest.get(group)
        if told is None and group == "optimizer":  # an older save
            continue
        if not isinstance(told, dict) or not isinstance(told.get("names"), list):
            return "its manifest does not say which run it is of"
        if _hash_of(values, [name for name in told["names"] if name in values]) != told.get("sha256"):
            return "it is of a run with other settings"
    return None


def _hash_of(values: Mapping[str, Any], names: Iterable[str]) -> str:
    chosen = {name: values[name] for name in names}
    return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()


def check_same_run(config: TrainConfig, path: Path) -> None:
    """ValueError when a run would continue with settings that its checkpoint was not made with."""
    saved, free = read_yaml(path), free_settings(config)
    started_in = saved.get(STARTED_IN) or ""
    changed = [
        f"--{name} was {saved[name]!r}, is {now!r}"
        for name, now in asdict(config).items()
        if name in saved and name not in free and not _is_same(name, saved[name], now, started_in)
    ]
    if changed:
        raise UserError(
            f"run {config.exp_name!r} was started with other settings ({'; '.join(changed)}); "
            f"choose another --exp_name, or give the settings that it had{_optimizer_hint(changed)}"
        )


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
