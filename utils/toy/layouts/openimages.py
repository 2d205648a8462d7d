"""Open Images: a mask file for each thing, the official CSV files, and the index made of them."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from utils.toy.layouts.common import Drawn, SceneSource, folder, write_image, write_jpg, write_json
from utils.toy.scene import Scene

# Toy thing -> label and name of Open Images, in the order of the file of class descriptions.
LABELS: dict[str, tuple[str, str]] = {
    "boat": ("/m/019jd", "Boat"), "ball": ("/m/018xm", "Ball"), "person": ("/m/01g317", "Person"),
    "bus": ("/m/01bjv", "Bus"), "tent": ("/m/01j61q", "Tent"), "flag": ("/m/03120", "Flag"),
    "streetlight": ("/m/033rq4", "Street light"), "house": ("/m/03jm5", "House"), "tree": ("/m/07j7r", "Tree"),
    "car": ("/m/0k4j", "Car"), "airplane": ("/m/0cmf2", "Airplane"), "building": ("/m/0cgh4", "Building"),
    "bench": ("/m/0cvnqh", "Bench"),
}  # fmt: skip
NEVER_SEEN = ("/m/011k07", "Tortoise")  # a class without masks
VERIFIED = 0.5  # fraction of the absent classes with verified absence
MASK_COLUMNS = (
    "MaskPath", "ImageID", "LabelName", "BoxID", "BoxXMin", "BoxXMax", "BoxYMin", "BoxYMax", "PredictedIoU", "Clicks",
)  # fmt: skip


@dataclass(frozen=True)
class Annotated:
    """What is annotated in one scene: things by toy name, and the toy names verified to be absent."""

    image_id: str
    regions: tuple[tuple[str, np.ndarray], ...]
    absent: tuple[str, ...]
    mask_scale: int  # masks are this many times larger than the image


def annotate(drawn: Drawn) -> Annotated:
    """Every thing that Open Images has a class for; fences are not annotated."""
    rng = np.random.default_rng((drawn.number, 4))
    regions = tuple((thing.name, thing.mask) for thing in drawn.scene.things if thing.name in LABELS)
    present = {thing.name for thing in drawn.scene.things}
    absent = tuple(name for name in LABELS if name not in present and rng.random() < VERIFIED)
    return Annotated(f"{int(rng.integers(2**63)):016x}", regions, absent, 1 + drawn.number % 2)


def fits(scene: Scene) -> bool:
    return any(thing.name in LABELS for thing in scene.things)


def write_openimage(root: Path, source: SceneSource) -> None:
    """OpenImageV6/{folder_train,train-masks,*.csv} and train_mask.json, train_negatives.json; training only."""
    target = folder(root / "OpenImageV6")
    index: dict[str, Any] = {}
    negatives: dict[str, list[str]] = {}
    masks: list[Sequence[Any]] = []
    labels: list[Sequence[Any]] = []
    for drawn in source.scenes("openimage", "train", fits):
        found = annotate(drawn)
        image_id = found.image_id
        write_jpg(folder(target / "folder_train" / image_id[:2]) / f"{image_id}.jpg", drawn.scene.image)
        for number, (name, mask) in enumerate(found.regions):
            label, spoken = LABELS[name]
            box_id = f"{number:08x}"
            file_name = f"{image_id}_{label.strip('/').replace('/', '')}_{box_id}.png"
            large = mask.repeat(found.mask_scale, axis=0).repeat(found.mask_scale, axis=1)
            write_image(folder(target / "train-masks" / file_name[0]) / file_name, Image.fromarray(large))
            masks.append((file_name, image_id, label, box_id, *box_of(mask), "0.0", ""))
            index.setdefault(image_id, {}).setdefault(spoken.lower(), []).append(
                f"{file_name[0]}/{file_name}"
            )
        labels += [(image_id, "verification", LABELS[name][0], 1) for name in dict(found.regions)]
        labels += [(image_id, "verification", LABELS[name][0], 0) for name in found.absent]
        negatives[image_id] = [LABELS[name][1].lower() for name in found.absent]
    used = {name for found in index.values() for name in found}
    write_json(
        target / "train_mask.json",
        {"categories": [name.lower() for _, name in LABELS.values() if name.lower() in used], **index},
    )
    known = {image_id: [name for name in names if name in used] for image_id, names in negatives.items()}
    write_json(
        target / "train_negatives.json", {image_id: names for image_id, names in known.items() if names}
    )
    write_csv(target / "class-descriptions-boxable.csv", [NEVER_SEEN, *LABELS.values()])
    write_csv(target / "train-annotations-object-segmentation.csv", [MASK_COLUMNS, *masks])
    write_csv(
        target / "train-annotations-human-imagelabels-boxable.csv",
        [("ImageID", "Source", "LabelName", "Confidence"), *labels],
    )


def box_of(mask: np.ndarray) -> tuple[str, str, str, str]:
    """Left, right, top and bottom as fractions of the image."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    height, width = mask.shape
    edges = columns[0] / width, (columns[-1] + 1) / width, rows[0] / height, (rows[-1] + 1) / height
    left, right, top, bottom = (f"{edge:.6f}" for edge in edges)
    return left, right, top, bottom


def write_csv(path: Path, rows: Sequence[Sequence[Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
