"""The manifest of a save in training, and which save of a folder is the newest whole one.

runs/EXP/ckpt_model/global_step500/manifest.json: step, a hash of the run's settings, and size and SHA-256 of every
file. It is written last, so a save without one was not finished. `latest` is for DeepSpeed's tools: a kill may come
before it is written, so it decides only where no save has a manifest, as in runs of older versions.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.errors import UserError
from model.files import read_json

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
LATEST = "latest"
TAG = re.compile(r"global_step(\d+)")
PLAIN_NAME = re.compile(r"[\w-][\w.-]*")
CHUNK = 1 << 22  # bytes
Check = Callable[[dict[str, Any]], str | None]  # of a manifest's content: what is wrong with it


@dataclass(frozen=True, kw_only=True)
class Found:
    """The newest whole save of a folder."""

    folder: Path
    manifest: dict[str, Any]  # empty where the save has none


def describe_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of every file below a folder, by its path in it; the manifest itself is left out."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != MANIFEST]
    with ThreadPoolExecutor(4) as threads:
        hashes = list(threads.map(sha256_of, paths))
    return {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": value}
        for path, value in zip(paths, hashes, strict=True)
    }


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_latest(folder: Path) -> str | None:
    """The tag that `latest` names; None without one, and where it names no folder in this one."""
    path = folder / LATEST
    if not path.is_file():
        return None
    tag = path.read_bytes()[:300].decode("utf-8", errors="replace").strip()
    if not PLAIN_NAME.fullmatch(tag) or not (folder / tag).is_dir() or (folder / tag).is_symlink():
        if tag:
            logger.warning(
                "%s names %r, which is no save in this folder; it is not followed", path, tag[:100]
            )
        return None
    return tag


def saves(folder: Path) -> list[Path]:
    """The folders of the saves, the newest first, complete or not."""
    if not folder.is_dir():
        return []
    found = [(int(match[1]), path) for path in folder.iterdir() if (match := TAG.fullmatch(path.name))]
    steps = [path for _, path in sorted(found, reverse=True) if path.is_dir() and not path.is_symlink()]
    latest = read_latest(folder)
    if latest and not TAG.fullmatch(latest):  # somebody else's tag
        return [folder / latest, *steps]
    return steps


def readable_manifests(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Each save with its manifest, the newest first; one whose manifest is damaged is passed over."""
    for save in saves(folder):
        try:
            yield save, read_json(save / MANIFEST)
        except (UserError, OSError):
            continue


def newest_save(folder: Path, check: Check = lambda _: None) -> Found | None:
    """The newest whole save; says which ones were passed over. None if the folder holds no save at all.

    Args:
        check: says what is wrong with a manifest besides its files, for instance that it is of another run.

    Raises:
        UserError: none of the saves is whole.
    """
    candidates, latest = saves(folder), read_latest(folder)
    none_has_one = not any(_has_manifest(path) for path in candidates)
    passed: list[tuple[str, str]] = []
    for path in candidates:
        known = _has_manifest(path) or (none_has_one and path.name == (latest or path.name))
        problem = damage(path, check) if known else f"it has no {MANIFEST}: writing it was not finished"
        if problem is None:
            for name, why in passed:
                logger.warning("%s is passed over: %s", folder / name, why)
            return Found(folder=path, manifest=read_json(path / MANIFEST))
        passed.append((path.name, problem))
    if not passed:
        return None
    raise UserError(
        f"{folder} holds no whole save ({'; '.join(f'{name}: {why}' for name, why in passed)}); copy it again, take "
        "another save (ckpt_best), or start again under another --exp_name"
    )


def _has_manifest(save: Path) -> bool:
    """Whether something is in the manifest's place, be it damaged: a save of older versions has nothing there."""
    return os.path.lexists(save / MANIFEST)


def damage(save: Path, check: Check = lambda _: None) -> str | None:
    """What is wrong with a save, None if nothing: files that are missing or changed, or another one's."""
    if not any(save.glob("*_model_states.pt")):
        return "it has no *_model_states.pt"
    if not _has_manifest(save):
        return next(filter(None, map(archive_damage, sorted(save.glob("*.pt")))), None)
    try:
        manifest = read_json(save / MANIFEST)
    except (UserError, OSError) as problem:
        return str(problem)
    files = manifest.get("files")
    if not isinstance(files, dict) or not all(isinstance(told, dict) for told in files.values()):
        return f"its {MANIFEST} lists no files"
    tag = TAG.fullmatch(save.name)
    if tag and manifest.get("step") != int(tag[1]):
        return f"its {MANIFEST} is of step {manifest.get('step')}"
    return check(manifest) or next(_changed_files(save, files), None)


def _changed_files(save: Path, files: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Files that are not what the manifest says; sizes first, as they cost nothing."""
    for name, told in files.items():
        path = save / name
        if not path.is_file():
            yield f"{name} is missing"
        elif path.stat().st_size != told.get("size"):
            yield f"{name} has {path.stat().st_size} bytes and had {told.get('size')}"
    for path in sorted(save.glob("*.pt")):
        if path.name not in files:
            yield f"{path.name} does not belong to it"
    now = describe_files(save)
    for name, told in files.items():
        if now.get(name, {}).get("sha256") != told.get("sha256"):  # a name that leads elsewhere has no sum
            yield f"{name} has changed since it was written (SHA-256)"


def archive_damage(path: Path) -> str | None:
    """What is wrong with a file of `torch.save`, by the check sums in it; None if nothing, or if it has none."""
    if not path.is_file():
        return f"{path.name} is no file"  # a pipe would keep the reader waiting
    try:
        with zipfile.ZipFile(path) as archive:
            wrong = archive.testzip()
    except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError) as problem:
        return f"{path.name} is cut off or damaged ({problem})"
    return f"{path.name} is damaged at {wrong}" if wrong else None
