"""Which weights a run started from, so that it goes on from the same ones, wherever they lie by then.

A resume reads the base anew: a save holds trained weights alone. The manifest of a save has a fingerprint of the
model, the CLIP tower and the mask decoder that were named on the command line.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from model.checkpoints.manifest import readable_manifests
from model.downloads import WEIGHT_SUFFIXES
from model.errors import UserError
from utils.config.training import TrainConfig

BASES = ("version", "vision_tower", "vision_pretrained")
PART = 2**20  # bytes that are read of a file's begin and of its end: all of 14 GB would take a minute


def fingerprints(config: TrainConfig) -> dict[str, str]:
    """Setting -> fingerprint, of what lies on disk; a name on the hub has none."""
    found = {name: fingerprint(getattr(config, name)) for name in BASES if getattr(config, name)}
    return {name: value for name, value in found.items() if value}


@cache  # the run keeps the weights that it has read, whatever becomes of the files
def fingerprint(path: str) -> str:
    """A hash of config.json and of size, begin and end of every weight file; "" for what is not on disk."""
    place = Path(path)
    files = (
        [place] if place.is_file() else sorted(filter(_is_part, place.iterdir())) if place.is_dir() else []
    )
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name if place.is_dir() else ''} {size}\n".encode(errors="replace"))
        with file.open("rb") as content:
            digest.update(content.read(PART))
            content.seek(max(size - PART, 0))
            digest.update(content.read(PART))
    return digest.hexdigest() if files else ""


def _is_part(path: Path) -> bool:
    return path.is_file() and (path.name == "config.json" or path.suffix in WEIGHT_SUFFIXES)


def fingerprints_told(folder: Path) -> dict[str, str]:
    """Those of the newest save of a folder that tells them; none for a run of an older version."""
    for _, manifest in readable_manifests(folder):
        told = manifest.get("bases")
        if isinstance(told, dict):
            return {name: value for name, value in told.items() if isinstance(value, str)}
    return {}


def check_bases(config: TrainConfig, told: Mapping[str, Any]) -> None:
    """UserError where a path of the run holds other weights by now."""
    now = fingerprints(config)
    for name in BASES:
        if name in told and name in now and told[name] != now[name]:
            raise UserError(
                f"--{name} {getattr(config, name)} holds other weights than those that run {config.exp_name!r} was "
                "started from; put them back, or choose another --exp_name"
            )
