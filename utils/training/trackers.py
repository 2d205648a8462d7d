"""Trackers beside TensorBoard that get a run's curves and images: Weights & Biases, Trackio. Optional packages.

A tracker is no reason to lose a run: one that fails while the run goes on is left out from there on, and the log says
so. losses.jsonl and TensorBoard have everything.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import secrets
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np

from model.errors import UserError
from utils.common.commands import one_line
from utils.common.files import write_whole
from utils.config.training import TrainConfig

logger = logging.getLogger(__name__)

PROJECT = "lasagna"  # unless WANDB_PROJECT or TRACKIO_PROJECT says another one
ID_FILE = "tracker_id"  # in a run's folder: what a run that goes on is found by
PACKAGES = ("wandb", "trackio")  # a tracker is called like its package
OFFLINE = ("offline", "dryrun", "disabled")  # values of WANDB_MODE that need no account


class Tracker(Protocol):
    """Gets values and images of steps; never raises."""

    def add(
        self, values: Sequence[tuple[str, float, int]], images: Sequence[tuple[str, np.ndarray, int]]
    ) -> None:
        """(tag, value, step) and (tag, (height, width, 3) uint8, step)."""

    def close(self) -> None:
        """Hand over what is left."""


def check_trackers(config: TrainConfig) -> None:
    """UserError for a tracker whose package is not installed, or that has no account to send to."""
    for name in config.trackers:
        if name in PACKAGES and importlib.util.find_spec(name) is None:
            raise UserError(
                f"--report_to {name} needs the package {name}, which is not installed; pip install {name}, or leave "
                "it out"
            )
    if "wandb" in config.trackers and os.environ.get("WANDB_MODE") not in OFFLINE and not _wandb_key():
        raise UserError(
            "--report_to wandb: nobody is logged in to Weights & Biases; type `wandb login`, or set "
            "WANDB_MODE=offline, which writes into the run's folder and needs no network"
        )


def _wandb_key() -> str | None:
    return importlib.import_module("wandb").api.api_key


def open_trackers(config: TrainConfig, told: int) -> list[Tracker]:
    """The trackers of --report_to besides TensorBoard; UserError for one that does not start.

    Args:
        told: last step that an earlier start of this run has told them; a run that goes on repeats some steps.
    """
    found: list[Tracker] = []
    for name in config.trackers:
        if name in PACKAGES:
            try:
                found.append(_Run(name, config, told))
            except Exception as problem:  # whatever a library raises when there is no network
                raise UserError(
                    f"--report_to {name}: {one_line(problem)}; mend it, or leave it out"
                ) from problem
    return found


class _Run:
    """A run of wandb or trackio, whose functions are alike."""

    def __init__(self, name: str, config: TrainConfig, told: int) -> None:
        self.name, self.told = name, told
        self._library: ModuleType = importlib.import_module(name)
        self._run: Any = None
        known = run_id(config.run_dir)
        project = os.environ.get(f"{name.upper()}_PROJECT") or PROJECT
        options = {"project": project, "config": asdict(config), "resume": "allow"}
        if name == "wandb":
            settings = self._library.Settings(console="off")
            options |= {
                "name": config.exp_name, "id": known, "dir": str(config.run_dir.resolve()), "settings": settings,
            }  # fmt: skip
        else:  # a run is found by its name
            options |= {"name": f"{config.exp_name}-{known}"}
        self._run = self._library.init(**options)

    def add(
        self, values: Sequence[tuple[str, float, int]], images: Sequence[tuple[str, np.ndarray, int]]
    ) -> None:
        """Log what is new, the values of a step together."""
        if self._run is None:
            return
        new: dict[int, dict[str, Any]] = {}
        told: list[tuple[str, float | np.ndarray, int]] = [*values, *images]
        for tag, value, step in told:
            if step > self.told or tag.startswith("val"):  # a validation of a step that was told may be new
                shown = self._library.Image(value) if isinstance(value, np.ndarray) else float(value)
                new.setdefault(step, {})[tag] = shown
        try:
            for step, shown_values in new.items():
                self._run.log(shown_values, step=step)
        except Exception as problem:  # a run of days does not end for a tracker
            logger.error("%s gets no more values of this run: %s", self.name, one_line(problem))
            self._run = None

    def close(self) -> None:
        """Wait until everything is handed over."""
        if self._run is None:
            return
        try:
            self._run.finish()
        except Exception as problem:
            logger.error("%s did not finish: %s", self.name, one_line(problem))
        self._run = None


def run_id(folder: Path) -> str:
    """The id of the run in this folder, made when it starts: another run of the same name is another one."""
    path = folder / ID_FILE
    if path.is_file() and (known := path.read_text(encoding="utf-8").strip()):
        return known
    write_whole(path, f"{secrets.token_hex(4)}\n")
    return path.read_text(encoding="utf-8").strip()
