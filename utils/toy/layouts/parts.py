"""Pascal-Part and PACO-LVIS: COCO annotations of things and of their upper and lower parts."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from utils.toy.layouts.coco import image_stem
from utils.toy.layouts.common import Drawn, SceneSource, folder, write_jpg, write_json
from utils.toy.layouts.polygons import coco_segmentation
from utils.toy.scene import THINGS, Scene, Thing

# Thing -> its parts above and below a line, and where the line is, as a fraction of the thing's height.
PARTS: dict[str, tuple[str, str, float]] = {
    "person": ("head", "body", 0.3),
    "tree": ("crown", "trunk", 0.65),
    "house": ("roof", "wall", 0.4),
    "car": ("body", "wheel", 0.7),
    "bus": ("body", "wheel", 0.75),
    "boat": ("sail", "hull", 0.7),
    "flag": ("cloth", "pole", 0.45),
    "streetlight": ("lamp", "pole", 0.2),
}
PACO_NAMES = {"car": "car_(automobile)", "bus": "bus_(vehicle)", "streetlight": "street_light_(lamp)"}
FORMS = ("polygons", "counts", "compressed")  # of an annotation's segmentation, in turn
VERIFIED = 0.5  # fraction of the absent things with verified absence
PARTLY = 0.3  # fraction of the things with several instances of which one is not annotated


@dataclass(frozen=True)
class Annotated:
    """What is annotated in one scene, by official category name."""

    regions: tuple[tuple[str, np.ndarray], ...]  # category, (height, width) bool
    absent: tuple[str, ...]  # categories verified to be absent
    partly: tuple[str, ...]  # categories of which some instances are not annotated


def parts_of(thing: Thing) -> Iterator[tuple[str, np.ndarray]]:
    """Name and mask of each visible part of a thing."""
    if thing.name in PARTS:
        upper, lower, share = PARTS[thing.name]
        _, top, _, bottom = thing.box
        line = top + round(share * (bottom - top))
        below = np.arange(len(thing.mask))[:, None] >= line
        for part, mask in ((upper, thing.mask & ~below), (lower, thing.mask & below)):
            if mask.any():
                yield part, mask


def pascal_categories() -> list[str]:
    return [f"{thing}:{part}" for thing, (*parts, _) in PARTS.items() for part in parts]


def paco_categories() -> list[str]:
    """Objects first, then parts, as in PACO."""
    parts = [f"{paco_name(thing)}:{part}" for thing, (*parts, _) in PARTS.items() for part in parts]
    return [paco_name(thing) for thing in THINGS] + parts


def paco_name(thing: str) -> str:
    return PACO_NAMES.get(thing, thing)


def annotate_pascal_part(drawn: Drawn) -> Annotated:
    """Every part of every thing; absence is not annotated."""
    regions = [
        (f"{thing.name}:{part}", mask) for thing in drawn.scene.things for part, mask in parts_of(thing)
    ]
    return Annotated(tuple(regions), (), ())


def annotate_paco(drawn: Drawn) -> Annotated:
    """Things and parts; some instances are left out and listed as not exhaustive; some absences are verified."""
    scene, rng = drawn.scene, np.random.default_rng((drawn.number, 3))
    names = [thing.name for thing in scene.things]
    partly = {name for name in sorted(set(names)) if names.count(name) > 1 and rng.random() < PARTLY}
    regions: list[tuple[str, np.ndarray]] = []
    seen: set[str] = set()
    for thing in scene.things:
        if thing.name in partly and thing.name not in seen:
            seen.add(thing.name)
            continue  # the first one of these is not annotated
        name = paco_name(thing.name)
        regions.append((name, thing.mask))
        regions += [(f"{name}:{part}", mask) for part, mask in parts_of(thing)]
    absent = [name for name in THINGS if name not in names and rng.random() < VERIFIED]
    unsure = [
        name for name in paco_categories() if name.split(":")[0] in {paco_name(thing) for thing in partly}
    ]
    return Annotated(tuple(regions), tuple(paco_name(name) for name in absent), tuple(unsure))


def has_parts(scene: Scene) -> bool:
    return any(thing.name in PARTS for thing in scene.things)


def write_pascal_part(root: Path, source: SceneSource) -> None:
    """vlpart/pascal_part/train.json, images in VOCdevkit/VOC2010/JPEGImages beside it."""
    target = root / "vlpart" / "pascal_part"
    images = folder(target / "VOCdevkit" / "VOC2010" / "JPEGImages")
    book = _Book(pascal_categories())
    for drawn in source.scenes("pascal_part", "train", has_parts):
        name = f"2009_{drawn.number:06d}.jpg"
        write_jpg(images / name, drawn.scene.image)
        book.add(drawn.number + 1, name, drawn.scene, annotate_pascal_part(drawn))
    write_json(target / "train.json", book.content())


def write_paco_lvis(root: Path, source: SceneSource) -> None:
    """vlpart/paco/annotations/paco_lvis_v1_train.json, about the images of the layout coco."""
    images = folder(root / "coco" / "train2017")
    book = _Book(paco_categories(), with_lists=True)
    for drawn in source.scenes("coco", "train"):
        stem = image_stem("train", drawn.number)
        write_jpg(images / f"{stem}.jpg", drawn.scene.image)
        book.add(int(stem), f"train2017/{stem}.jpg", drawn.scene, annotate_paco(drawn))
    write_json(root / "vlpart" / "paco" / "annotations" / "paco_lvis_v1_train.json", book.content())


class _Book:
    """The growing lists of a COCO file; `with_lists` adds LVIS's lists of categories to the images."""

    def __init__(self, names: Sequence[str], *, with_lists: bool = False) -> None:
        self.id_of = {name: number for number, name in enumerate(names, start=1)}
        self.with_lists = with_lists
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []

    def add(self, image_id: int, file_name: str, scene: Scene, annotated: Annotated) -> None:
        height, width = scene.label.shape
        image = {"id": image_id, "file_name": file_name, "height": height, "width": width}
        if self.with_lists:
            image["neg_category_ids"] = [self.id_of[name] for name in annotated.absent]
            image["not_exhaustive_category_ids"] = [self.id_of[name] for name in annotated.partly]
        self.images.append(image)
        for name, mask in annotated.regions:
            ann_id = len(self.annotations) + 1
            self.annotations.append({
                "id": ann_id, "image_id": image_id, "category_id": self.id_of[name], "iscrowd": 0,
                "segmentation": coco_segmentation(mask, FORMS[ann_id % len(FORMS)]), "area": int(mask.sum()),
            })  # fmt: skip

    def content(self) -> dict[str, Any]:
        categories = [{"id": number, "name": name} for name, number in self.id_of.items()]
        return {"images": self.images, "annotations": self.annotations, "categories": categories}
