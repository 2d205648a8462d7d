"""Ref-ZOM: references with no target, one, or many."""

from collections.abc import Iterator
from pathlib import Path

from utils.toy.language import absent_expressions, expressions, pair_expressions
from utils.toy.layouts.common import Drawn, SceneSource, folder, write_jpg, write_json
from utils.toy.layouts.refer import Book, write_refs

FOLDERS = {"train": "train2014", "test": "val2014"}
FIRST_IMAGE = 300_001
MAX_TEXTS, MAX_MANY, MAX_ZERO = 2, 2, 3  # of a thing; of a scene


def write_refzom(root: Path, source: SceneSource) -> None:
    """refer_seg/refzom/{Ref_ZOM.p,instances.json} and its images in train2014 and val2014."""
    target = folder(root / "refer_seg" / "refzom")
    book = Book(("refzom",), first_image=FIRST_IMAGE)
    for split, where in FOLDERS.items():
        book.file_format = f"COCO_{where}_{{:012d}}.jpg"
        for drawn in source.scenes("refzom", split, lambda scene: bool(scene.things)):
            image = book.add_image(drawn.scene)
            write_jpg(folder(target / where) / image["file_name"], drawn.scene.image)
            ann_ids = [book.add_annotation(image, thing) for thing in drawn.scene.things]
            for kind, ids, texts in _references(drawn, ann_ids):
                book.add_ref("refzom", split, image, ids, [], texts)
                book.refs["refzom"][-1]["source"] = kind
    write_refs(target / "Ref_ZOM.p", book.refs["refzom"])
    write_json(target / "instances.json", book.instances())


def _references(drawn: Drawn, ann_ids: list[int]) -> Iterator[tuple[str, int | list[int], list[str]]]:
    """Source, annotations and sentences; `ann_ids` has one for each thing of the scene."""
    scene, rng = drawn.scene, drawn.rng
    of_thing = {id(thing): ann_id for thing, ann_id in zip(scene.things, ann_ids, strict=True)}
    for thing, ann_id in zip(scene.things, ann_ids, strict=True):
        if texts := expressions(scene, thing, rng)[:MAX_TEXTS]:
            yield "one", ann_id, texts
    for text, things in pair_expressions(scene, rng)[:MAX_MANY]:
        yield "many", [of_thing[id(thing)] for thing in things], [text]
    for number, text in enumerate(absent_expressions(scene, rng, MAX_ZERO)):
        # A reference without a target may name annotations; they mean nothing.
        yield "zero", ann_ids[:1] if number % 2 else [], [text]
