"""R-RefCOCO and FP-RefCOCO, also + and g: RefCOCO's references with sentences that describe nothing in the image."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from utils.toy.language import absent_expressions, expressions
from utils.toy.layouts.common import Drawn, SceneSource, folder, write_jpg, write_json
from utils.toy.layouts.refer import Book, write_refs
from utils.toy.layouts.refer_more import FIRST_IMAGE, texts_about

# From the true sentences of a reference and the false ones of its scene to its marked sentences.
Marked = Callable[[Sequence[str], Sequence[str]], list[dict[str, object]]]

SPLITS = ("train", "val")
# Data set -> layout that its scenes are of, first image, author of the splits.
BASES = {
    "refcoco": ("refer", 1, "unc"),
    "refcoco+": ("refcoco+", FIRST_IMAGE["refcoco+"], "unc"),
    "refcocog": ("refcocog", FIRST_IMAGE["refcocog"], "umd"),
}
MAX_ABSENT, MAX_NEGATIVES = 6, 2  # false sentences of a scene, and of one reference


def write_refer_absent(root: Path, source: SceneSource) -> None:
    """refer_seg/{R-refcoco,fprefcoco}, also + and g, about the images of RefCOCO.

    The sentences of R-RefCOCO have `exist`, those of FP-RefCOCO `is_false_premise` and `gt_sent`.
    """
    for base, (layout, first_image, split_by) in BASES.items():
        marked = {f"R-{base}": _negatives, f"fp{base}": _false_premises}
        book = Book(tuple(marked), first_image=first_image)
        for split in SPLITS:
            for drawn in source.scenes(layout, split, lambda scene: bool(scene.things)):
                _add_scene(root, book, base, split, drawn, marked)
        refs_files = (f"refs({split_by}).p", "refs(berkeley_exclude_unified).p")
        for name, refs_file in zip(marked, refs_files, strict=True):
            target = folder(root / "refer_seg" / name)
            write_refs(target / refs_file, book.refs[name])
            write_json(target / "instances.json", book.instances())


def _add_scene(
    root: Path, book: Book, base: str, split: str, drawn: Drawn, marked: Mapping[str, Marked]
) -> None:
    scene, rng = drawn.scene, drawn.rng
    image = book.add_image(scene)
    path = folder(root / "refer_seg/images/mscoco/images/train2014") / image["file_name"]
    if not path.exists():  # those of `base`
        write_jpg(path, scene.image)
    ann_ids = [book.add_annotation(image, thing) for thing in scene.things]
    told = [texts_about(base, expressions(scene, thing, rng)) for thing in scene.things]
    false = absent_expressions(scene, rng, MAX_ABSENT)
    for number, (thing, ann_id, true) in enumerate(zip(scene.things, ann_ids, told, strict=True)):
        start = number * MAX_NEGATIVES % max(len(false), 1)
        for name, mark in marked.items() if true else ():
            sentences = mark(true, [*false[start:], *false[:start]])
            texts = [str(sentence["sent"]) for sentence in sentences]
            book.add_ref(name, split, image, ann_id, book.categories[thing.name], texts)
            for written, marks in zip(book.refs[name][-1]["sentences"], sentences, strict=True):
                written |= marks


def _negatives(true: Sequence[str], false: Sequence[str]) -> list[dict[str, object]]:
    return [
        *({"sent": text, "exist": True} for text in true),
        *({"sent": text, "exist": False} for text in false[:MAX_NEGATIVES]),
    ]


def _false_premises(true: Sequence[str], false: Sequence[str]) -> list[dict[str, object]]:
    """False sentences that share a word with a true one, where there are any; `gt_sent` corrects them."""
    words = {word for text in true for word in text.split()} - {"the"}
    similar = sorted(false, key=lambda text: words.isdisjoint(text.split()))
    return [
        *({"sent": text, "is_false_premise": False, "gt_sent": text} for text in true),
        *({"sent": text, "is_false_premise": True, "gt_sent": true[0]} for text in similar[:MAX_NEGATIVES]),
    ]
