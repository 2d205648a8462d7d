"""Weights of a training run on their way into a whole model: what train_ds.py, zero_to_fp32.py or PEFT wrote."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.checkpoints.finite import require_finite
from model.checkpoints.layouts import adapter, deepspeed, released
from model.checkpoints.layouts.base import DTYPES, SETTINGS_FOLDER, named_dtype
from model.checkpoints.weights import INDEX_FILES, WEIGHT_FILES, read_folder, read_weight_file
from model.errors import UserError
from model.files import read_json, read_yaml
from model.lasagna import LasagnaForConditionalGeneration
from model.lora import TRAINABLE_PATTERN, add_lora, merge
from model.strict_loading import check_fit

logger = logging.getLogger(__name__)

CHECKPOINT_FOLDER = "ckpt_model"  # of a run, the newest; train_ds.py keeps the best one in ckpt_best
DEFAULT_ALPHA = 16
LORA_NAME = re.compile(r"vlm\.base_model\.model\.(?P<layer>.+)\.lora_A\.default\.weight")


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """What a training run saved about itself; empty where it did not."""

    run: dict[str, Any] = field(default_factory=dict)  # run.yaml: the flags of train_ds.py
    config: dict[str, Any] = field(default_factory=dict)  # config.json of the model
    source: Path | None = None  # the file of `run`

    @property
    def dtype(self) -> torch.dtype | None:
        """Number format that the run computed in."""
        precision = self.run.get("precision")
        return DTYPES.get(precision) if precision else named_dtype(self.config.get("dtype"))

    @property
    def num_all_classes(self) -> int | None:
        """Most classes that one query named; runs older than the entry of config.json say it in run.yaml."""
        return self.config.get("num_all_classes") or self.run.get("num_all_classes")

    def place_of(self, name: str) -> str | None:
        """The file, folder or repository that the run was given as --`name`; None where it was given none.

        A relative path counts from where the run was started, else from here and from the folders above the run.

        Raises:
            FileNotFoundError: it is a path, and nothing is there; a path is never looked up on the hub.
        """
        given = self.run.get(name)
        if not given or self.source is None:
            return given or None
        started_in = self.run.get("started_in")
        path = Path(given).expanduser()
        above = self.source.resolve().parents
        for folder in (*([Path(started_in)] if started_in else []), Path(), *above):
            if (folder / path).exists():
                return str(folder / path)
        if started_in and given.count("/") <= 1 and not given.startswith((".", "/", "~")):
            return given  # a repository: what was a path then was written as an absolute one
        if self.source.name == adapter.CONFIG_FILE:  # PEFT writes paths as they were typed
            raise FileNotFoundError(
                f"{self.source} names the base {given}, which is not a folder here; merge the adapter with "
                f"--version FOLDER, or with --version {given} if that is a repository of the Hugging Face hub"
            )
        raise FileNotFoundError(
            f"{self.source} says that the run was started in {started_in or 'a folder that it does not name'} with "
            f"--{name} {given}, which is not there; pass --{name}"
        )


def read_run_settings(path: str | Path) -> RunSettings:
    """The settings of a weight file or folder, looked for in it, beside it and in the run's checkpoint.

    A PEFT folder says its base and alpha itself, and nothing else.

    `zero_to_fp32.py . ../pytorch_model.bin` puts the file beside the checkpoint folder.
    """
    path = Path(path).expanduser()
    if adapter.is_adapter(path):
        return RunSettings(run=adapter.run_settings(path), source=path / adapter.CONFIG_FILE)
    beside = path.parent
    for place in (path, path / CHECKPOINT_FOLDER, beside, beside / CHECKPOINT_FOLDER, beside.parent):
        folder = place / SETTINGS_FOLDER
        if folder.is_dir():
            run = folder / "run.yaml"
            content = read_yaml(run) if run.is_file() else {}
            return RunSettings(run=content, config=read_json(folder / "config.json"), source=run)
    return RunSettings()


def read_training_weights(path: str | Path, tag: str | None = None) -> dict[str, Tensor]:
    """Weights under the names they have in training, from any of:

    - a run's folder, its checkpoint folder or the folder of one tag, as DeepSpeed writes them;
    - what zero_to_fp32.py makes of it: a file, or a folder of shards (also one called pytorch_model.bin);
    - a PEFT folder.

    Raises:
        FileNotFoundError: there is nothing of that kind; the message says what was looked for.
        UserError: a weight is not finite, or a file is damaged.
    """
    weights = _trained_weights(Path(path).expanduser(), tag)
    require_finite(weights, source=str(path))
    return weights


def _trained_weights(path: Path, tag: str | None) -> dict[str, Tensor]:
    if path.is_file():
        if path.name.endswith(("_model_states.pt", "_optim_states.pt")):
            raise UserError(f"--weight {path} is one file of a DeepSpeed checkpoint; pass its folder")
        return read_weight_file(path)
    if not path.is_dir():
        raise FileNotFoundError(f"--weight {path} does not exist")
    if adapter.is_adapter(path):
        return adapter.read_adapter(path)
    checkpoint = deepspeed_folder(path)
    if checkpoint:
        return deepspeed.read_checkpoint(checkpoint, tag)
    if read_json(path / "config.json").get("model_type"):
        raise UserError(
            f"--weight {path} is a whole model, in which nothing is left to merge; pass it as --version, or the "
            "ckpt_model folder of a run as --weight"
        )
    if any((path / name).is_dir() for name in WEIGHT_FILES):  # zero_to_fp32.py . FOLDER/pytorch_model.bin
        path = next(path / name for name in WEIGHT_FILES if (path / name).is_dir())
    try:
        return read_folder(path)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"--weight {path} is neither a DeepSpeed checkpoint (with `latest`) nor what zero_to_fp32.py "
            f"writes: {error}"
        ) from error


def deepspeed_folder(path: Path) -> Path | None:
    """The DeepSpeed checkpoint at `path`, which is one or the folder of a run; None if there is none."""
    return next((f for f in (path, path / CHECKPOINT_FOLDER) if deepspeed.is_checkpoint(f)), None)


def describe(path: Path, tag: str | None = None) -> str | None:
    """What kind of trained weights `path` is, for the log; None if of none of the known kinds."""
    if path.is_dir() and adapter.is_adapter(path):
        return "PEFT adapter"
    if path.is_dir() and (folder := deepspeed_folder(path)):
        return deepspeed.describe(folder, tag)
    if path.is_file() or any((path / name).exists() for name in (*WEIGHT_FILES, *INDEX_FILES)):
        return "weights that zero_to_fp32.py wrote"
    return None


def apply_training_weights(
    model: LasagnaForConditionalGeneration,
    path: str | Path,
    *,
    lora_alpha: float | None = None,
    tag: str | None = None,
) -> LasagnaForConditionalGeneration:
    """Puts the trained weights into the model that the run started from, adapters merged; in place.

    Args:
        model: the base, as `load_model` gives it, with the same format as in training.
        path: see `read_training_weights`; or a PEFT folder, which needs to hold adapters only.
        lora_alpha: wins over what the run's settings or the PEFT folder say; with neither, 16, training's default.
        tag: of a DeepSpeed checkpoint; the newest if not given.

    Raises:
        ValueError: a weight is missing, left over or of another shape.
    """
    path = Path(path).expanduser()
    weights = read_training_weights(path, tag)
    if released.is_training_state(weights):
        weights = released.training_names(weights, model)
    layers = {
        found["layer"]: weights[name].shape[0] for name in weights if (found := LORA_NAME.fullmatch(name))
    }
    if layers:
        if len(set(layers.values())) > 1:
            raise UserError(f"{path} has adapters of several ranks {sorted(set(layers.values()))}")
        alpha = lora_alpha or read_run_settings(path).run.get("lora_alpha")
        if alpha is None:
            alpha = DEFAULT_ALPHA
            logger.warning(
                "%s does not come with the run's settings; LoRA alpha is taken to be %s", path, alpha
            )
        known = [layer for layer in layers if has_layer(model.vlm, layer)]
        # Layers that the base does not have are left over, and stand in the table of what does not fit.
        if known:
            pattern = "|".join(re.escape(layer) for layer in known)
            model.vlm = add_lora(model.vlm, next(iter(layers.values())), alpha, 0.0, pattern)
    copy_trained(model, weights, source=str(path))
    return merge(model).eval()


def has_layer(module: torch.nn.Module, name: str) -> bool:
    """Whether `module` holds a module of this dotted name."""
    return any(name == other for other, _ in module.named_modules())


@torch.no_grad()
def copy_trained(model: LasagnaForConditionalGeneration, weights: dict[str, Tensor], *, source: str) -> None:
    """Copies weights by name; frozen ones may be there, and everything that trains must be.

    Args:
        source: where the weights are; if that is a PEFT folder, its adapters are all that must be there.
    """
    own = model.state_dict()
    required = {name for name in own if TRAINABLE_PATTERN.fullmatch(name)}
    if adapter.is_adapter(Path(source)):
        required = {name for name in required if ".lora_" in name}
    check_fit(
        own,
        weights,
        required=required,
        source=source,
        hint="Is --version the model that this run started from, and is the format the run's?",
    )
    for name, value in weights.items():
        own[name].copy_(value)
