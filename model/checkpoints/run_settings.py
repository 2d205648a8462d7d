"""What a training run saved about itself beside its weights: flags, configuration, processor."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from model.checkpoints.layouts import adapter
from model.checkpoints.layouts.base import CHECKPOINT_FOLDER, DTYPES, SETTINGS_FOLDER, named_dtype
from model.errors import UserError
from model.files import is_regular, read_json, read_yaml
from model.text.format import SequenceFormat

# Settings of a run that are read, by what they are.
TEXTS = (
    "version",
    "vision_tower",
    "vision_pretrained",
    "started_in",
    "precision",
    "prompt",
    "image_aspect_ratio",
)
NUMBERS = ("lora_alpha", "lora_r", "num_all_classes", "min_image_tokens", "max_image_tokens")


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """What a training run saved about itself; empty where it did not."""

    run: dict[str, Any] = field(default_factory=dict)  # run.yaml: the flags of train_ds.py
    config: dict[str, Any] = field(default_factory=dict)  # config.json of the model
    source: Path | None = None  # the file of `run`

    def __post_init__(self) -> None:
        for names, kind, what in ((TEXTS, str, "a text"), (NUMBERS, int | float, "a number")):
            for name in names:
                if not isinstance(value := self.run.get(name), kind | None):
                    raise UserError(
                        f"{self.source}: {name} is a {type(value).__name__}, not {what}; copy the run's "
                        "settings again"
                    )

    @property
    def dtype(self) -> torch.dtype | None:
        """The dtype of the run."""
        precision = self.run.get("precision")
        return DTYPES.get(precision) if precision else named_dtype(self.config.get("dtype"))

    @property
    def format(self) -> SequenceFormat | None:
        """Sequence format that the model was trained with."""
        stored = self.config.get("sequence_format")
        return SequenceFormat.from_dict(stored) if stored else None

    @property
    def prompt(self) -> str | None:
        """Prompt template that the model was trained with."""
        return self.config.get("prompt")

    @property
    def num_all_classes(self) -> int | None:
        """Most classes that one query named; runs older than the entry of config.json have it in run.yaml."""
        return self.config.get("num_all_classes") or self.run.get("num_all_classes")

    @property
    def image_aspect_ratio(self) -> str | None:
        """What became of images that are no squares, where the run was told; else it is the base's."""
        return self.run.get("image_aspect_ratio") or None

    @property
    def spatial_prompt(self) -> bool:
        """Whether the model was trained with a spatial prompt."""
        return bool(self.config.get("spatial_prompt"))

    @property
    def num_latent_prompts(self) -> int:
        """Of the spatial prompt."""
        return self.config.get("num_latent_prompts", 0)

    @property
    def sam_kind(self) -> str | None:
        """The kind of the mask decoder, see `model.decoders.build.KINDS`; None where nothing says it."""
        stored = self.config.get("sam_config")
        return stored.get("kind", "sam") if isinstance(stored, dict) else None

    @property
    def lora_alpha(self) -> float | None:
        """Alpha of the adapters."""
        return self.run.get("lora_alpha")

    @property
    def image_tokens(self) -> dict[str, Any]:
        """The limits of an image's tokens that the run was told, as arguments of `load_model`."""
        return {name: self.run.get(name) for name in ("min_image_tokens", "max_image_tokens")}

    def place_of(self, name: str) -> str | None:
        """The file, folder or repository that the run was given as --`name`; None where it was given none.

        A relative path is looked up in the folder where the run was started, else in the current folder and in the
        folders above the run.

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
            return given  # a repository: the run writes every path as an absolute one
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

    `zero_to_fp32.py . ../pytorch_model.bin` writes the file beside the checkpoint folder. A PEFT folder states its
    base and alpha, and nothing else.
    """
    path = Path(path).expanduser()
    if adapter.is_adapter(path):
        return RunSettings(run=adapter.run_settings(path), source=path / adapter.CONFIG_FILE)
    beside = path.parent
    for place in (path, path / CHECKPOINT_FOLDER, beside, beside / CHECKPOINT_FOLDER, beside.parent):
        folder = place / SETTINGS_FOLDER
        if folder.is_dir():
            run = folder / "run.yaml"
            content = read_yaml(run) if is_regular(run) else {}
            if not is_regular(folder / "config.json"):  # not the defaults, for what nobody knows
                raise UserError(
                    f"{folder} holds no config.json, which says how the model was trained; copy the run's settings "
                    "again"
                )
            return RunSettings(run=content, config=read_json(folder / "config.json"), source=run)
    return RunSettings()
