"""Mapillary Vistas, releases 2.0 and 1.2: a configuration file that names the label values, and palette PNGs."""

from pathlib import Path
from typing import Any

import numpy as np

from utils.toy.layouts.common import SceneSource, folder, write_jpg, write_json, write_palette_png
from utils.toy.scene import CLASSES

# An extract of the official lists, in their alphabetical order: name, readable, toy classes. No name begins with
# "void" that is evaluated, except for two of release 1.2.
SHARED: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("animal--bird", "Bird", ()),
    ("construction--barrier--fence", "Fence", ("fence",)),
    ("construction--flat--road", "Road", ("road",)),
    ("construction--flat--sidewalk", "Sidewalk", ()),
    ("construction--structure--building", "Building", ("building", "house")),
    ("nature--mountain", "Mountain", ("mountain",)),
    ("nature--sand", "Sand", ("sand",)),
    ("nature--sky", "Sky", ("sky",)),
    ("nature--terrain", "Terrain", ("grass",)),
    ("nature--vegetation", "Vegetation", ("tree",)),
    ("nature--water", "Water", ("sea",)),
    ("object--bench", "Bench", ("bench",)),
    ("object--street-light", "Street Light", ("streetlight",)),
    ("object--vehicle--boat", "Boat", ("boat",)),
    ("object--vehicle--bus", "Bus", ("bus",)),
    ("object--vehicle--car", "Car", ("car",)),
    ("void--unlabeled", "Unlabeled", ("tent", "airplane", "ball", "flag")),
)
ONLY: dict[str, tuple[tuple[str, str, tuple[str, ...]], ...]] = {
    "v2.0": (
        ("construction--flat--driveway", "Driveway", ()),
        ("human--person--individual", "Person", ("person",)),
        ("void--static", "Static", ()),
    ),
    "v1.2": (
        ("human--person", "Person", ("person",)),
        ("void--car-mount", "Car Mount", ()),
        ("void--ego-vehicle", "Ego Vehicle", ()),
    ),
}
EVALUATED_VOIDS = ("void--car-mount", "void--ego-vehicle")
FOLDERS = {"train": "training", "val": "validation"}


def labels_of(release: str) -> list[tuple[str, str, tuple[str, ...]]]:
    """Name, readable and toy classes of each label value of a release."""
    return sorted((*SHARED, *ONLY[release]))


def config(release: str) -> dict[str, Any]:
    """The configuration file of a release."""
    labels = [
        {
            "name": name, "readable": readable, "instances": name.startswith(("object", "human", "animal")),
            "evaluate": not name.startswith("void") or name in EVALUATED_VOIDS, "color": [value, 2 * value, 99],
        }
        for value, (name, readable, _) in enumerate(labels_of(release))
    ]  # fmt: skip
    return {
        "labels": labels,
        "version": release.removeprefix("v"),
        "mapping": "public",
        "folder_structure": "{split}",
    }


def values_of(release: str) -> np.ndarray:
    """(20,) uint8: the label value of each of the toy CLASSES."""
    value_of = {toy: value for value, (_, _, names) in enumerate(labels_of(release)) for toy in names}
    return np.asarray([value_of[name] for name in CLASSES], dtype=np.uint8)


def write_mapillary(root: Path, source: SceneSource) -> None:
    """mapillary/ as the download of release 2.0: config_{v2.0,v1.2}.json, SPLIT/{images,v2.0/labels,v1.2/labels}."""
    _write(root / "mapillary", source, {"v2.0": ("config_v2.0.json", "v2.0/labels"),
                                        "v1.2": ("config_v1.2.json", "v1.2/labels")})  # fmt: skip


def write_mapillary_1(root: Path, source: SceneSource) -> None:
    """mapillary/ as the download of release 1.2: config.json, SPLIT/{images,labels}."""
    _write(root / "mapillary", source, {"v1.2": ("config.json", "labels")})


def _write(root: Path, source: SceneSource, releases: dict[str, tuple[str, str]]) -> None:
    for release, (config_name, _) in releases.items():
        write_json(root / config_name, config(release))
    for split, name in FOLDERS.items():
        images = folder(root / name / "images")
        for drawn in source.scenes("mapillary", split):
            stem = f"toy-{split}-{drawn.number:06d}"
            write_jpg(images / f"{stem}.jpg", drawn.scene.image)
            for release, (_, labels) in releases.items():
                path = folder(root / name / labels) / f"{stem}.png"
                write_palette_png(path, values_of(release)[drawn.scene.label])
