"""RefCLEF, RefCOCO+ and RefCOCOg: expressions of one target each, with splits of their own."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from utils.toy.language import expressions
from utils.toy.layouts.common import SceneSource, folder, write_jpg, write_json
from utils.toy.layouts.polygons import Segmentation, coco_segmentation
from utils.toy.layouts.refer import EXPRESSIONS_PER_THING, Book, is_in_scope, write_refs
from utils.toy.scene import Scene

# RefCOCO+ forbids location words.
PLACE_WORDS = re.compile(r"left|right|top|bottom|middle|upper|lower|far")
# Refs file -> split of the scenes -> split that the file has them in. The `google` splits know no test.
REFCLEF = {"unc": {split: split for split in ("train", "val", "testA", "testB", "testC")}}
REFCOCO_PLUS = {"unc": {split: split for split in ("train", "val", "testA", "testB")}}
REFCOCOG = {
    "umd": {split: split for split in ("train", "val", "test")},
    "google": {"train": "train", "val": "val", "test": "train"},
}
FIRST_IMAGE = {"refclef": 25_001, "refcoco+": 100_001, "refcocog": 200_001}  # the data sets' ids are disjoint


class RegionBook(Book):
    """RefCLEF's regions: a list of one run-length code."""

    def segmentation(self, mask: np.ndarray, ann_id: int) -> list[Segmentation]:
        return [coco_segmentation(mask, "compressed")]


def write_refclef(root: Path, source: SceneSource) -> None:
    """refer_seg/refclef/{refs(unc).p,instances.json}, images in refer_seg/images/saiapr_tc-12/xx/images."""
    book = RegionBook(tuple(REFCLEF), "{folder:02d}/images/{:d}.jpg", FIRST_IMAGE["refclef"])
    _write(root, source, "refclef", REFCLEF, book, "saiapr_tc-12")


def write_refcoco_plus(root: Path, source: SceneSource) -> None:
    """refer_seg/refcoco+/{refs(unc).p,instances.json}; without location words."""
    book = Book(tuple(REFCOCO_PLUS), first_image=FIRST_IMAGE["refcoco+"])
    _write(root, source, "refcoco+", REFCOCO_PLUS, book)


def write_refcocog(root: Path, source: SceneSource) -> None:
    """refer_seg/refcocog/{refs(umd).p,refs(google).p,instances.json}."""
    book = Book(tuple(REFCOCOG), first_image=FIRST_IMAGE["refcocog"])
    _write(root, source, "refcocog", REFCOCOG, book)


def texts_about(name: str, texts: Sequence[str]) -> list[str]:
    """The expressions that a data set allows."""
    allowed = [text for text in texts if name != "refcoco+" or not PLACE_WORDS.search(text)]
    return allowed[:EXPRESSIONS_PER_THING]


def _write(
    root: Path,
    source: SceneSource,
    name: str,
    splits: Mapping[str, Mapping[str, str]],
    book: Book,
    image_folder: str = "mscoco/images/train2014",
) -> None:
    images = root / "refer_seg" / "images" / image_folder
    for split in next(iter(splits.values())):

        def fits(scene: Scene, split: str = split) -> bool:
            return any(is_in_scope(split, thing) for thing in scene.things)

        for drawn in source.scenes(name, split, fits):
            image = book.add_image(drawn.scene)
            write_jpg(
                folder((images / image["file_name"]).parent) / Path(image["file_name"]).name,
                drawn.scene.image,
            )
            for thing in drawn.scene.things:
                ann_id = book.add_annotation(image, thing)
                texts = texts_about(name, expressions(drawn.scene, thing, drawn.rng))
                if texts and is_in_scope(split, thing):
                    for split_by, written in splits.items():
                        category = book.categories[thing.name]
                        book.add_ref(split_by, written[split], image, ann_id, category, texts)
    target = folder(root / "refer_seg" / name)
    for split_by, refs in book.refs.items():
        write_refs(target / f"refs({split_by}).p", refs)
    write_json(target / "instances.json", book.instances())
