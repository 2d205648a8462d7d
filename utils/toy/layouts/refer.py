"""refCOCO and gRefCOCO: expressions about COCO annotations; both use the same images, as the real ones do."""

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from utils.toy.language import absent_expressions, expressions, pair_expressions
from utils.toy.layouts.common import Drawn, SceneSource, folder, write_jpg, write_json
from utils.toy.layouts.polygons import Segmentation, coco_segmentation
from utils.toy.layouts.semantic import label_values
from utils.toy.scene import CLASSES, THINGS, Scene, Thing

SPLITS = ("train", "val", "testA", "testB")
EXPRESSIONS_PER_THING = 3
MAX_ABSENT, MAX_PAIRS = 8, 2  # of one scene in gRefCOCO: as many expressions without a target as with one
NO_TARGET = -1
FIRST_OWN_CATEGORY = 201  # first id for things that COCO has no category for
FORMS = ("compressed", "polygons", "counts")  # of an annotation's segmentation, in turn


def category_ids() -> dict[str, int]:
    """COCO's category id of each thing: its COCO-Stuff label value plus one, where it has one."""
    values = label_values("cocostuff")
    own = iter(range(FIRST_OWN_CATEGORY, FIRST_OWN_CATEGORY + len(THINGS)))
    coco = {name: int(values[CLASSES.index(name)]) for name in THINGS}
    return {name: value + 1 if value != 255 else next(own) for name, value in coco.items()}


class Book:
    """The growing lists of images, annotations, references and sentences, with their ids.

    `refs` has one list for each file of references; images and annotations are shared.
    """

    def __init__(
        self, names: Sequence[str], file_format: str = "COCO_train2014_{:012d}.jpg", first_image: int = 1
    ) -> None:
        self.categories = category_ids()
        self.file_format = file_format  # image id -> file name
        self.first_image = first_image
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []
        self.refs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        self.num_sentences = 0

    def add_image(self, scene: Scene) -> dict[str, Any]:
        image_id = self.first_image + len(self.images)
        height, width = scene.label.shape
        file_name = self.file_format.format(image_id, folder=image_id // 1000)
        self.images.append({"id": image_id, "file_name": file_name, "height": height, "width": width})
        return self.images[-1]

    def add_annotation(self, image: dict[str, Any], thing: Thing) -> int:
        ann_id = len(self.annotations) + 1
        left, top, right, bottom = thing.box
        self.annotations.append({
            "id": ann_id, "image_id": image["id"], "category_id": self.categories[thing.name],
            "segmentation": self.segmentation(thing.mask, ann_id),
            "bbox": [left, top, right - left, bottom - top], "area": int(thing.mask.sum()), "iscrowd": 0,
        })  # fmt: skip
        return ann_id

    def segmentation(self, mask: np.ndarray, ann_id: int) -> Segmentation | list[Segmentation]:
        return coco_segmentation(mask, FORMS[ann_id % len(FORMS)])

    def add_ref(
        self,
        name: str,
        split: str,
        image: dict[str, Any],
        ann_id: int | list[int],  # a list in gRefCOCO
        category_id: int | list[int],
        texts: Sequence[str],
    ) -> None:
        sent_ids = list(range(self.num_sentences + 1, self.num_sentences + 1 + len(texts)))
        self.num_sentences += len(texts)
        self.refs[name].append({
            "ref_id": len(self.refs[name]) + 1, "ann_id": ann_id, "category_id": category_id,
            "image_id": image["id"], "file_name": image["file_name"], "split": split, "sent_ids": sent_ids,
            "sentences": [
                {"sent_id": sent_id, "sent": text, "raw": text, "tokens": text.split()}
                for sent_id, text in zip(sent_ids, texts, strict=True)
            ],
        })  # fmt: skip

    def instances(self) -> dict[str, Any]:
        """What instances.json holds."""
        categories = [{"id": number, "name": name} for name, number in self.categories.items()]
        return {
            "info": {"description": "toy world"}, "licenses": [],
            "images": self.images, "annotations": self.annotations, "categories": categories,
        }  # fmt: skip


def is_in_scope(split: str, thing: Thing) -> bool:
    """testA is about people, testB about everything else, as in the real data."""
    return split not in ("testA", "testB") or (thing.name == "person") == (split == "testA")


def _add_scene(book: Book, split: str, image: dict[str, Any], drawn: Drawn) -> None:
    scene, rng = drawn.scene, drawn.rng
    ann_ids = {id(thing): book.add_annotation(image, thing) for thing in scene.things}
    for thing in scene.things:
        texts = expressions(scene, thing, rng)[:EXPRESSIONS_PER_THING]
        if texts and is_in_scope(split, thing):
            ann_id, category_id = ann_ids[id(thing)], book.categories[thing.name]
            book.add_ref("refcoco", split, image, ann_id, category_id, texts)
            book.add_ref("grefcoco", split, image, [ann_id], [category_id], texts[:1])
    pairs = [
        group for group in pair_expressions(scene, rng) if all(is_in_scope(split, t) for t in group.things)
    ]
    for text, things in pairs[:MAX_PAIRS]:
        chosen = [ann_ids[id(thing)] for thing in things]
        book.add_ref("grefcoco", split, image, chosen, [book.categories[t.name] for t in things], [text])
    for text in absent_expressions(scene, rng, MAX_ABSENT):
        book.add_ref("grefcoco", split, image, [NO_TARGET], [NO_TARGET], [text])


def write_refer(root: Path, source: SceneSource) -> None:
    """refer_seg/{refcoco,grefcoco} with references and instances.json, and their shared images."""
    images = folder(root / "refer_seg" / "images" / "mscoco" / "images" / "train2014")
    book = Book(("refcoco", "grefcoco"))
    for split in SPLITS:

        def fits(scene: Scene, split: str = split) -> bool:
            return any(is_in_scope(split, thing) for thing in scene.things)

        for drawn in source.scenes("refer", split, fits):
            image = book.add_image(drawn.scene)
            write_jpg(images / image["file_name"], drawn.scene.image)
            _add_scene(book, split, image, drawn)
    for name in book.refs:
        write_json(root / "refer_seg" / name / "instances.json", book.instances())
    write_refs(root / "refer_seg" / "refcoco" / "refs(unc).p", book.refs["refcoco"])
    write_json(root / "refer_seg" / "grefcoco" / "grefs(unc).json", book.refs["grefcoco"])


def write_refs(path: Path, refs: list[dict[str, Any]]) -> None:
    """A pickle in the REFER toolkit's form."""
    with path.open("wb") as file:
        pickle.dump(refs, file, protocol=2)
