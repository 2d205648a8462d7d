"""The common part of the three kinds of own data: path and options of the flag, images, masks.

    own_sem:PATH      a folder of images, label PNGs and classes.txt        utils/data/datasets/own_sem.py
    own_coco:PATH     a COCO instances file with its images                 utils/data/datasets/own_coco.py
    own_jsonl:PATH    one line per image: conversations and their masks     utils/data/datasets/own_jsonl.py

PATH may be followed by a split and by options: `own_coco:./boats|val|exhaustive=true`. The layouts are described in
docs/own_data.md.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from model.errors import UserError
from utils.common.paths import resolve
from utils.data import storage
from utils.data.base import FlagError
from utils.data.files import leaves_folder, names_in
from utils.data.image_names import ImageFiles
from utils.data.masks import decode_segmentation
from utils.data.polygons import (
    EmptyMaskError,
    check_coordinates,
    check_pixels,
    fault_of,
    is_run_lengths,
    is_stray,
    polygons_in,
    short,
)

TRUTH = {"true": True, "false": False}
WHOLE = "all"  # the split of data without splits


@dataclass(frozen=True, kw_only=True)
class OwnFlag:
    """A parsed flag entry of own data."""

    kind: str  # own_sem, own_coco or own_jsonl
    path: str
    split: str = ""  # empty: not stated
    options: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name of the data set in logs and counts, different for each path."""
        return f"{self.kind}:{self.path}"

    @classmethod
    def parse(cls, kind: str, fields: Sequence[str], known_options: Collection[str]) -> OwnFlag:
        """From ("PATH", "SPLIT", "KEY=VALUE", ...); split and options are optional, in any order."""
        path, *rest = fields
        name, split, options = f"{kind}:{path}", "", {}
        for text in rest:
            key, equals, value = (part.strip() for part in text.partition("="))
            if not equals and (split or not key):
                raise FlagError(f"{name} takes one split, got {'|'.join(rest)!r}; write {name}|val")
            if equals and (key not in known_options or key in options):
                raise FlagError(
                    f"{name}: option {text!r} is unknown or repeated; known: {', '.join(known_options)}"
                )
            if equals:
                options[key] = value
            else:
                split = key
        return cls(kind=kind, path=path, split=split, options=options)

    def is_exhaustive(self, default: bool) -> bool:
        """Whether a class without annotation in an image is known to be absent from it."""
        return self._is_on("exhaustive", default)

    @property
    def anywhere(self) -> bool:
        """Whether names in the annotation file may lead out of the data's folder."""
        return self._is_on("anywhere", False)

    def _is_on(self, option: str, default: bool) -> bool:
        text = self.options.get(option)
        if text is None:
            return default
        if text.lower() not in TRUTH:
            raise FlagError(f"{self.name}: {option} is true or false, got {text!r}")
        return TRUTH[text.lower()]


def find_path(path: str, dataset_dir: str | Path, wanted_by: str) -> Path:
    """`path` relative to the working directory or, if it does not exist there, to `dataset_dir`."""
    if storage.is_in_shards(path):
        if not storage.is_named(Path(path)):
            raise FileNotFoundError(
                f"{wanted_by} needs {path}, which is not in the shards; shard the data again"
            )
        return Path(path)
    given = resolve(path, wanted_by.split(":")[0])
    # The same path twice if it is absolute.
    candidates = list(dict.fromkeys((Path(given), Path(resolve(str(Path(dataset_dir) / given))))))
    for candidate in candidates:
        if storage.is_named(candidate):
            return candidate
    tried = " or ".join(str(candidate.absolute()) for candidate in candidates)
    raise FileNotFoundError(f"{wanted_by} needs {tried}; there is neither a file nor a folder")


def find_split_file(flag: OwnFlag, dataset_dir: str | Path, default: str, suffix: str) -> tuple[Path, str]:
    """The annotation file and its split: PATH itself, or SPLIT`suffix` in the folder PATH.

    A file has no splits, so the flag must not name one; for a folder, the split is `default` unless the flag names
    one.
    """
    path = find_path(flag.path, dataset_dir, flag.name)
    if storage.is_folder(path):
        split = flag.split or default
        if not storage.is_file(path / f"{split}{suffix}"):
            raise FileNotFoundError(
                f"{flag.name} needs {path / split}{suffix} for its split {split!r}; {path} holds {names_in(path)}; "
                f"name the file itself if it is called otherwise: {flag.name}/NAME{suffix}"
            )
        return path / f"{split}{suffix}", split
    if flag.split not in ("", WHOLE):
        raise FlagError(
            f"{flag.name}|{flag.split}: a file has no splits; name the file of the split instead, or a folder "
            f"with {flag.split}{suffix}"
        )
    return path, WHOLE


def image_folders(flag: OwnFlag, annotations: Path, dataset_dir: str | Path) -> list[Path]:
    """The folders that the images of an annotation file may be in, the most likely first.

    The one of `images=FOLDER`; without it, the usual ones beside the annotation file and one level above.
    """
    if "images" in flag.options:
        given = find_path(flag.options["images"], dataset_dir, f"{flag.name}|images=")
        if not storage.is_folder(given):
            raise FlagError(
                f"{flag.name}|images={flag.options['images']}: is a file; name the folder that it is in"
            )
        return [given]
    folder = annotations.parent
    split = annotations.stem.rpartition("_")[-1]  # instances_val2017.json: val2017
    split_folders = [above / name for above in (folder, folder.parent) for name in (f"images/{split}", split)]
    usual = [folder, folder / "images", folder.parent / "images", folder.parent]
    return [*usual, *(path for path in split_folders if storage.is_folder(path))]


def find_images(
    flag: OwnFlag, annotations: Path, names: Collection[str], candidates: Sequence[Path]
) -> ImageFiles:
    """The image files of an annotation file, in that of `candidates` that has most of them, the first of equals.

    FileNotFoundError if none has any.
    """
    found: list[ImageFiles] = []
    num_names = len(set(names))
    for candidate in candidates:
        found.append(ImageFiles(candidate, names, anywhere=flag.anywhere))
        if len(found[-1].as_written) == num_names:
            break
    best = max(found, key=lambda files: (len(files), len(files.as_written)))
    if not len(best):
        ambiguous = next(
            (f"; {name!r} {files.why_not(name)}" for files in found for name in files.ambiguous), ""
        )
        example = next(iter(names), "")
        if not ambiguous and leaves_folder(example) and not flag.anywhere:
            ambiguous = ", or allow names that lead out of the folder: |anywhere=true"
        held = next((folder for folder in candidates if storage.is_folder(folder)), None)
        holds = f" ({held} holds {names_in(held)})" if held else ""
        raise FileNotFoundError(
            f"{annotations}: no image of it, such as {short(example)}, is in "
            f"{', '.join(map(str, candidates[:3]))}{holds}; "
            f"say where they are: {flag.name}|images=FOLDER{ambiguous}"
        )
    return best


def decode_own_mask(
    segmentation: Any, height: int, width: int, on_stray: Callable[[], None] | None = None
) -> np.ndarray:
    """As `decode_segmentation`, but faults that the user can correct, such as misplaced polygons, are a UserError.

    Leftovers of tools (`is_stray`) are skipped if there are other parts, and `on_stray` is called. EmptyMaskError if
    there are only leftovers, or the mask covers no pixel.
    """
    if not isinstance(segmentation, list):
        mask = decode_segmentation(segmentation, height, width)
    else:
        polygons = polygons_in(segmentation)
        for polygon in polygons:
            check_coordinates(polygon, height, width)
        check_pixels(polygons, height, width)
        parts: list[Any] = [part for part in segmentation if is_run_lengths(part)]
        faults = {}
        for polygon in polygons:
            if not (fault := fault_of(polygon, height, width)):
                parts.append(polygon)
            elif is_stray(polygon, height, width):
                faults[fault] = polygon
            else:
                raise UserError(fault)
        if faults and not parts:
            raise EmptyMaskError(next(iter(faults)))
        if faults and on_stray is not None:
            on_stray()
        mask = decode_segmentation(parts, height, width)
    if not mask.any():
        raise EmptyMaskError("the mask covers no pixel; remove it, or draw it again")
    return mask
