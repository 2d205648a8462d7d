"""ADE20K and Cityscapes: images with a label image each; and the toy classes in all label lists."""

from pathlib import Path

import numpy as np

from utils.data.class_lists import load_class_list, load_id_table
from utils.toy.layouts.common import SceneSource, folder, write_jpg, write_png
from utils.toy.scene import CLASSES, Scene

# Official names of toy classes where they differ; None where a list has no such class.
RENAMED: dict[str, dict[str, str | None]] = {
    "ade20k": {},
    "cocostuff": {
        "ball": "sports ball", "sky": "sky-other", "building": "building-other",
        "flag": None, "streetlight": None,
    },
    "cityscapes": {
        "streetlight": "pole", "grass": "terrain", "tree": "vegetation", "house": "building",
        "mountain": None, "sea": None, "sand": None, "boat": None, "airplane": None, "ball": None,
        "flag": None, "bench": None, "tent": None,
    },
    "pascal_context_59": {
        "sea": "water", "house": "building", "airplane": "aeroplane",
        "sand": None, "ball": None, "flag": None, "streetlight": None, "tent": None,
    },
    "pascal_context_459": {"sea": "water", "house": "building", "airplane": "aeroplane", "streetlight": "light"},
    "pascal_voc": {
        **dict.fromkeys(CLASSES), "person": "person", "car": "car", "bus": "bus", "boat": "boat",
        "airplane": "aeroplane",
    },
}  # fmt: skip
UNLABELLED = {
    "ade20k": 0, "cocostuff": 255, "cityscapes": 0, "pascal_context_59": 0, "pascal_context_459": 0, "pascal_voc": 0,
}  # fmt: skip
TOWNS = {"train": "toytown", "val": "toyport"}


def label_values(name: str) -> np.ndarray:
    """(20,) uint8 or uint16: the value that a data set's label files have for each of the toy CLASSES."""
    official, id_table = load_class_list(name).official, load_id_table(name)
    values = []
    for toy_name in CLASSES:
        class_name = RENAMED[name].get(toy_name, toy_name)
        if class_name is None:
            values.append(UNLABELLED[name])
        else:
            values.append(int(np.flatnonzero(id_table == official.index(class_name))[0]))
    return np.asarray(values, dtype=np.min_scalar_type(max(values)))


def write_ade20k(root: Path, source: SceneSource, top: str = "ade20k") -> None:
    """ade20k/{images,annotations}/{training,validation}/ADE_{train,val}_%08d.{jpg,png}."""
    values = label_values("ade20k")
    for split, name in (("train", "training"), ("val", "validation")):
        images = folder(root / top / "images" / name)
        annotations = folder(root / top / "annotations" / name)
        for drawn in source.scenes("ade20k", split):
            stem = f"ADE_{split}_{drawn.number + 1:08d}"
            write_jpg(images / f"{stem}.jpg", drawn.scene.image)
            write_png(annotations / f"{stem}.png", values[drawn.scene.label])


def write_cityscapes(root: Path, source: SceneSource) -> None:
    """cityscapes/{leftImg8bit,gtFine}/SPLIT/TOWN/TOWN_%06d_000019_{leftImg8bit,gtFine_labelIds}.png.

    Only scenes with a road: others would be mostly unlabelled.
    """
    values = label_values("cityscapes")
    for split, town in TOWNS.items():
        images = folder(root / "cityscapes" / "leftImg8bit" / split / town)
        labels = folder(root / "cityscapes" / "gtFine" / split / town)
        for drawn in source.scenes("cityscapes", split, fits=has_road):
            stem = f"{town}_{drawn.number:06d}_000019"
            write_png(images / f"{stem}_leftImg8bit.png", drawn.scene.image)
            write_png(labels / f"{stem}_gtFine_labelIds.png", values[drawn.scene.label])


def has_road(scene: Scene) -> bool:
    return bool((scene.label == CLASSES.index("road")).any())
