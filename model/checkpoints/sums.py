"""Compares the files of a folder with the sums that were stored when it was written (`--verify`).

FOLDER/manifest.json of a merged model: {"files": {"model.safetensors": {"size": bytes, "sha256": digits}, ...}}, of
every file but README.md, which people edit. A save of a training run has the same in its own manifest.json, and under
"settings" that of the folder lasagna/ beside it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from model.checkpoints.layouts.base import SETTINGS_FOLDER
from model.checkpoints.layouts.deepspeed import checkpoint_folder
from model.checkpoints.manifest import MANIFEST, describe_files, saves, sha256_of
from model.errors import UserError
from model.files import read_json
from model.folders import local_folder

logger = logging.getLogger(__name__)

EDITED = ("README.md", ".gitattributes")  # files that are not loaded, and that people and hubs change
MOST_NAMED = 3
Sums = Mapping[str, Mapping[str, Any]]


def write_sums(folder: Path) -> None:
    """Write the manifest of a folder that is otherwise complete."""
    files = {name: told for name, told in describe_files(folder).items() if name not in EDITED}
    (folder / MANIFEST).write_text(json.dumps({"files": files}, indent=1) + "\n", encoding="utf-8")


def verify_sums(path: str | Path, flag: str, tag: str | None = None) -> None:
    """Compare a folder that was merged or trained here with its manifest.

    Args:
        path: the folder, or the name of a repository on a hub; of a training run also its checkpoint folder.
        flag: named in errors.
        tag: which save of a training run; the newest if not given.

    Raises:
        UserError: a file is missing, left over or changed: the message has the file, what was expected and found.
            Or nothing says what to expect.
    """
    place = Path(path) if Path(path).exists() else local_folder(path, flag=flag)
    folder = _folder_with_sums(place, tag)
    if folder is None:
        raise UserError(
            f"--verify: {flag} {path} has no {MANIFEST} to compare with; the merge and train_ds.py write one. Merge "
            "again, or leave --verify out"
        )
    manifest = read_json(folder / MANIFEST)
    wrong = list(_differences(folder, _sums(manifest, "files", folder)))
    settings = folder.parent / SETTINGS_FOLDER
    if "settings" in manifest:
        wrong += [
            f"{SETTINGS_FOLDER}/{text}"
            for text in _differences(settings, _sums(manifest, "settings", folder), alone=False)
        ]
    if wrong:
        more = f"; and {len(wrong) - MOST_NAMED} more" if len(wrong) > MOST_NAMED else ""
        raise UserError(
            f"--verify: {flag} {folder} is not what was written: {'; '.join(wrong[:MOST_NAMED])}{more}. Copy or "
            "download it again"
        )
    logger.info("%s: %d files are those of its %s", folder, len(manifest["files"]), MANIFEST)


def verify_if_known(path: str | Path, flag: str) -> None:
    """`verify_sums` of a folder that may be somebody else's: without sums, the log says that nothing was compared."""
    place = Path(path)
    if place.exists() and _folder_with_sums(place, None) is None:
        logger.warning("--verify: %s %s has no %s; its files are not compared", flag, path, MANIFEST)
        return
    verify_sums(path, flag)


def _folder_with_sums(place: Path, tag: str | None) -> Path | None:
    if (place / MANIFEST).is_file():
        return place
    folder = checkpoint_folder(place) if place.is_dir() else None
    if folder is None:
        return None
    found = [folder / tag] if tag else saves(folder)
    return found[0] if found and (found[0] / MANIFEST).is_file() else None


def _sums(manifest: Mapping[str, Any], key: str, folder: Path) -> Sums:
    found = manifest.get(key)
    if not isinstance(found, dict) or not all(isinstance(told, dict) for told in found.values()):
        raise UserError(f"--verify: {folder / MANIFEST} lists no files; copy the folder again")
    for name in found:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise UserError(f"--verify: {folder / MANIFEST} names {name!r}, which is no file of the folder")
    return found


def _differences(folder: Path, sums: Sums, *, alone: bool = True) -> Iterator[str]:
    """A sentence for each file that is not as listed.

    alone: files that are not listed are differences, but for those of EDITED and hidden ones.
    """
    for name, told in sums.items():
        path = folder / name
        if not path.is_file():
            yield f"{name} is missing, expected SHA-256 {told.get('sha256')}"
        elif (size := path.stat().st_size) != told.get("size"):
            yield f"{name}: expected {told.get('size')} bytes, found {size}"
        elif (found := sha256_of(path)) != told.get("sha256"):
            yield f"{name}: expected SHA-256 {told.get('sha256')}, found {found}"
    if alone:
        known = {*sums, *EDITED, MANIFEST}
        for path in sorted(folder.rglob("*")):
            name = path.relative_to(folder).as_posix()
            if path.is_file() and name not in known and not name.startswith("."):
                yield f"{name}: expected no such file, found one of {path.stat().st_size} bytes"
