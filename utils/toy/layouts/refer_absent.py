"""R-RefCOCO and FP-RefCOCO, also + and g: RefCOCO's references with sentences that describe nothing in the image."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from utils.toy.language import absent_expressions, expressions
from utils.toy.layouts.common import SceneSource, folder, write_jpg, write_json
from utils.toy.layouts.refer import Book, write_refs
from utils.toy.layouts.refer_more import FIRST_IMAGE, texts_about
from utils.toy.scene import Scene

SPLITS = ("train", "val")
# Data set -> layout that its scenes are of, first image, author of the splits.
BASES = {
    "refcoco": ("refer", 1, "unc"),
    "refcoco+": ("refcoco+", FIRST_IMAGE["refcoco+"], "unc"),
    "refcocog": ("refcocog", FIRST_IMAGE["refcocog"], "umd"),
}
MAX_NEGATIVES = 2  # of one reference
Absent = Callable[[Scene, Sequence[str], np.random.Generator], list[dict[str, object]]]


def write_r_refcoco(root: Path, source: SceneSource) -> None:
    """refer_seg/{R-refcoco,R-refcoco+,R-refcocog}: sentences with `exist`."""
    for name, (_, _, split_by) in BASES.items():
        _write(root, source, name, f"R-{name}", f"refs({split_by}).p", _negatives)


def write_fp_refcoco(root: Path, source: SceneSource) -> None:
    """refer_seg/{fprefcoco,fprefcoco+,fprefcocog}: sentences with `is_false_premise` and `gt_sent`."""
    for name in BASES:
        _write(root, source, name, f"fp{name}", "refs(berkeley_exclude_unified).p", _false_premises)


def _negatives(scene: Scene, texts: Sequence[str], rng: np.random.Generator) -> list[dict[str, object]]:
    absent = absent_expressions(scene, rng, MAX_NEGATIVES)
    return [
        *({"sent": text, "exist": True} for text in texts),
        *({"sent": text, "exist": False} for text in absent),
    ]


def _false_premises(scene: Scene, texts: Sequence[str], rng: np.random.Generator) -> list[dict[str, object]]:
    """False sentences that share a word with a true one, where there are any; `gt_sent` corrects them."""
    words = {word for text in texts for word in text.split()} - {"the"}
    absent = absent_expressions(scene, rng, 4 * MAX_NEGATIVES)
    absent.sort(key=lambda text: words.isdisjoint(text.split()))
    return [
        *({"sent": text, "is_false_premise": False, "gt_sent": text} for text in texts),
        *({"sent": text, "is_false_premise": True, "gt_sent": texts[0]} for text in absent[:MAX_NEGATIVES]),
    ]


def _write(
    root: Path, source: SceneSource, base: str, name: str, refs_file: str, sentences_of: Absent
) -> None:
    layout, first_image, _ = BASES[base]
    book = Book((name,), first_image=first_image)
    images = folder(root / "refer_seg" / "images" / "mscoco" / "images" / "train2014")
    for split in SPLITS:
        for drawn in source.scenes(layout, split, lambda scene: bool(scene.things)):
            scene = drawn.scene
            image = book.add_image(scene)
            if not (images / image["file_name"]).exists():  # those of `base`
                write_jpg(images / image["file_name"], scene.image)
            annotated = [(thing, book.add_annotation(image, thing)) for thing in scene.things]
            told = [expressions(scene, thing, drawn.rng) for thing in scene.things]
            for (thing, ann_id), texts in zip(annotated, told, strict=True):
                kept = texts_about(base, texts)
                if not kept:
                    continue
                sentences = sentences_of(scene, kept, drawn.rng)
                category = book.categories[thing.name]
                book.add_ref(name, split, image, ann_id, category, [str(s["sent"]) for s in sentences])
                for written, marked in zip(book.refs[name][-1]["sentences"], sentences, strict=True):
                    written |= marked
    target = folder(root / "refer_seg" / name)
    write_refs(target / refs_file, book.refs[name])
    write_json(target / "instances.json", book.instances())
