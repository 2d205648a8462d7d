"""What an entry of LISA++ holds: image, questions and answers, masks; and masks of COCO by their ids.

The layout is described in datasets/lisa_plus.py.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from model.errors import UserError
from utils.data.coco_file import id_of
from utils.data.coverage import well_formed
from utils.data.files import FolderListing, read_annotations
from utils.data.mask_references import Id, Pieces, Reference, References, ids_in
from utils.data.polygons import short

IMAGE_KEYS = ("img_path", "image_path", "img_pth")
MASK_KEYS = ("points", "info")
POLYGON_KEYS = ("polygon", "points", "segmentation", "polygon_raw")
SPEAKER = re.compile(r"<(person|robot)>\s*:")
TOLD_LABEL = re.compile(r"instance id is\s*([0-9]+)\s*,\s*label name is\s*([^;]+)")


@dataclass(frozen=True)
class Turn:
    """A question and its answer."""

    question: str
    answer: Pieces


@dataclass(frozen=True)
class CocoMask:
    """An annotation of COCO's instances."""

    image_id: Any
    segmentation: Any
    name: str


def wanted_by(turns: Sequence[Turn]) -> list[Id]:
    """The masks that answers refer to, each once."""
    return list(dict.fromkeys(mask for turn in turns for mask in ids_in(turn.answer)))


def named(answer: Pieces, names: Mapping[Id, str]) -> Pieces:
    """An answer with these names for masks that have no label."""
    pieces: list[str | References] = []
    for piece in answer:
        if isinstance(piece, References):
            told = [Reference(one.id, one.label or names.get(one.id, "")) for one in piece.all]
            piece = References(tuple(told))
        pieces.append(piece)
    return tuple(pieces)


def image_name(entry: Any) -> str:
    """The file name of an entry's image, without folders."""
    if not isinstance(entry, Mapping):
        raise UserError(f"an entry is an object with a question and masks, got {short(entry)}")
    key = next((key for key in IMAGE_KEYS if key in entry), None)
    if key is None:
        raise UserError(f"no image: none of {', '.join(IMAGE_KEYS)}")
    return text_in(entry, key).replace("\\", "/").rpartition("/")[2]


def text_in(entry: Mapping[str, Any], key: str) -> str:
    """A text of an entry, without white space around it."""
    if not isinstance(entry[key], str) or not entry[key].strip():
        raise UserError(f"{key!r} is a text, got {short(entry[key])}")
    text: str = entry[key].strip()
    return text


def pairs_in(output: str) -> tuple[list[tuple[str, str]], bool]:
    """Questions and answers of a dialogue, and whether it consists of nothing else."""
    before, *said = SPEAKER.split(output)
    turns = [(who, text.strip()) for who, text in zip(said[::2], said[1::2], strict=True)]
    pairs = [
        (question, answer)
        for (who, question), (other, answer) in pairwise(turns)
        if (who, other) == ("person", "robot") and question and answer
    ]
    return pairs, not before.strip() and 2 * len(pairs) == len(turns)


def targets_of(entry: Mapping[str, Any]) -> tuple[Reference, ...]:
    """The instances that an entry asks for, each once."""
    answer = entry.get("English Answer")
    told = {
        id_of(mask): label for mask, label in TOLD_LABEL.findall(answer if isinstance(answer, str) else "")
    }
    ids = list(told) if entry.get("ID") is None else entry["ID"]
    if not isinstance(ids, list) or not ids or not all(type(id_of(mask)) in (int, str) for mask in ids):
        raise UserError(f"'ID' is a list of masks, got {short(ids)}")
    held = masks_in(entry)
    targets = {}
    for mask in map(id_of, ids):
        of_mask = held.get(mask)
        label = of_mask.get("label name") if isinstance(of_mask, Mapping) else None
        label = label or told.get(mask, "")
        if not isinstance(label, str):
            raise UserError(f"mask {mask}: 'label name' is a text, got {short(label)}")
        targets[mask] = Reference(mask, " ".join(label.split()))
    return tuple(targets.values())


def masks_in(entry: Mapping[str, Any]) -> dict[Id, Any]:
    """What an entry holds of masks, by their ids."""
    held: dict[Id, Any] = {}
    for key in MASK_KEYS:
        masks = entry.get(key) or {}
        if not isinstance(masks, Mapping):
            raise UserError(f"{key!r} has masks by their ids, got {short(masks)}")
        held |= {id_of(mask): value for mask, value in masks.items() if value is not None}
    return held


def segmentations_of(entry: Mapping[str, Any], wanted: Iterable[Id]) -> dict[Id, Any]:
    """Those of the masks that an entry holds."""
    held = masks_in(entry)
    found = {}
    for mask in wanted:
        value = held.get(mask)
        if isinstance(value, Mapping) and "counts" not in value:
            value = next((value[key] for key in POLYGON_KEYS if value.get(key)), None)
        if not isinstance(value, list | Mapping | None):
            raise UserError(f"mask {mask}: polygons or a run-length code, got {short(value)}")
        if value:
            found[mask] = value
    return found


def read_coco_masks(listing: FolderListing, wanted: Mapping[str, Collection[Id]]) -> dict[Id, CocoMask]:
    """Annotations of COCO by their ids, from the files that are there.

    Args:
        listing: the folder of instances_train2017.json and instances_val2017.json.
        wanted: folder of images, such as train2017 -> ids of annotations of these.
    """
    found: dict[Id, CocoMask] = {}
    for split, ids in wanted.items():
        if (name := f"instances_{split}.json") not in listing:
            continue
        path = listing.folder / name
        with well_formed(path):
            content = read_annotations(path, keys=("annotations", "categories"))
            names = {id_of(each.get("id")): each.get("name") for each in content["categories"]}
            for each in content["annotations"]:
                if (mask := id_of(each.get("id"))) in ids:
                    image_id, spoken = id_of(each.get("image_id")), names.get(id_of(each.get("category_id")))
                    found[mask] = CocoMask(image_id, each.get("segmentation"), str(spoken or ""))
    return found
