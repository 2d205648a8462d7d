"""Own data of the three kinds: a folder of label images, a COCO file, questions with masks."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from utils.toy.language import absent_expressions, expressions
from utils.toy.layouts.common import Drawn, SceneSource, folder, write_jpg, write_json, write_png
from utils.toy.layouts.polygons import Segmentation, coco_segmentation
from utils.toy.scene import CLASSES, THINGS, Scene, Thing

FORMS = ("polygons", "compressed", "counts")  # of a mask, in turn
ALL_FORMS = (*FORMS, "png")
MAX_QUESTIONS = 4  # of one scene
VALUE_OF_CLASS = np.arange(1, len(CLASSES) + 1, dtype=np.uint8)  # 0 is the line `ignore`


def write_own(root: Path, source: SceneSource) -> None:
    """own/labels (own_sem), own/things (own_coco) and own/questions (own_jsonl), each with train and val."""
    own = root / "own"
    (folder(own / "labels") / "classes.txt").write_text(
        "\n".join(("ignore", *CLASSES)) + "\n", encoding="utf-8"
    )
    for split in ("train", "val"):
        scenes = list(source.scenes("own", split))
        _write_labels(own / "labels" / split, scenes)
        _write_things(own / "things", split, scenes)
        _write_questions(own / "questions", split, scenes)


def _write_labels(target: Path, scenes: Sequence[Drawn]) -> None:
    images, labels = folder(target / "images"), folder(target / "labels")
    for drawn in scenes:
        write_jpg(images / f"{drawn.number:04d}.jpg", drawn.scene.image)
        write_png(labels / f"{drawn.number:04d}.png", VALUE_OF_CLASS[drawn.scene.label])


def _write_things(target: Path, split: str, scenes: Sequence[Drawn]) -> None:
    """Every thing is annotated, so the file may be used with exhaustive=true."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for drawn in scenes:
        name = f"{split}_{drawn.number:04d}.jpg"
        write_jpg(folder(target / "images") / name, drawn.scene.image)
        height, width = drawn.scene.label.shape
        image_id = len(images) + 1
        images.append({"id": image_id, "file_name": name, "height": height, "width": width})
        for thing in drawn.scene.things:
            annotations.append({
                "id": len(annotations) + 1, "image_id": image_id, "category_id": category_id(thing), "iscrowd": 0,
                "segmentation": coco_segmentation(thing.mask, FORMS[len(annotations) % len(FORMS)]),
                "area": int(thing.mask.sum()),
            })  # fmt: skip
    categories = [{"id": number, "name": name} for number, name in enumerate(THINGS, start=1)]
    write_json(
        target / f"{split}.json", {"images": images, "annotations": annotations, "categories": categories}
    )


def category_id(thing: Thing) -> int:
    return THINGS.index(thing.name) + 1


def _write_questions(target: Path, split: str, scenes: Sequence[Drawn]) -> None:
    lines = []
    for drawn in scenes:
        name = f"{split}_{drawn.number:04d}"
        write_jpg(folder(target / "images") / f"{name}.jpg", drawn.scene.image)
        lines += [{"image": f"{name}.jpg", **line} for line in _lines(drawn, target, name)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (target / f"{split}.jsonl").write_text(text, encoding="utf-8")


def _lines(drawn: Drawn, target: Path, name: str) -> list[dict[str, Any]]:
    """Single questions about things, one about an absent thing, and a dialogue with two masks."""
    scene, rng = drawn.scene, drawn.rng
    asked = [(texts[0], thing) for thing in scene.things if (texts := expressions(scene, thing, rng))]
    lines = []
    for number, (text, thing) in enumerate(asked[:MAX_QUESTIONS]):
        mask = _mask(
            thing, ALL_FORMS[(drawn.number + number) % len(ALL_FORMS)], target, f"{name}_{number}.png"
        )
        lines.append(_line([f"Where is {text}?", "It is [SEG]."], [mask]))
    for text in absent_expressions(scene, rng, 1):
        lines.append(_line([f"Where is {text}?", "It is not there [NEG]."], []))
    stuff = _stuff(scene)
    turns = [f"<image>\nPlease segment the {stuff}.", "Sure, [SEG].", "How many things are there?",
             f"There are {len(scene.things)}."]  # fmt: skip
    lines.append(_line(turns, [coco_segmentation(scene.mask_of(stuff), "counts")]))
    return lines


def _stuff(scene: Scene) -> str:
    """The class with the most pixels."""
    return CLASSES[int(np.bincount(scene.label.ravel()).argmax())]


def _mask(thing: Thing, form: str, target: Path, name: str) -> Segmentation | str:
    if form != "png":
        return coco_segmentation(thing.mask, form)
    write_png(folder(target / "masks") / name, thing.mask.astype(np.uint8) * 255)
    return f"masks/{name}"


def _line(texts: Sequence[str], masks: list[Any]) -> dict[str, Any]:
    speakers = ("human", "gpt")
    turns = [{"from": speakers[number % 2], "value": text} for number, text in enumerate(texts)]
    return {"conversations": turns, "masks": masks}
