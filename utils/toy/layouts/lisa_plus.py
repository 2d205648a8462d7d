"""LISA++: instances, reasoning, dialogues and captions about the same scenes, with references to masks."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from utils.toy.language import expressions, pair_expressions, questions
from utils.toy.layouts.common import Drawn, SceneSource, folder, write_jpg, write_json
from utils.toy.layouts.polygons import Segmentation, coco_segmentation
from utils.toy.layouts.refer import Book
from utils.toy.scene import Scene

FIRST_IMAGE = {"train": 600_001, "val": 700_001}
# Split -> its parts. Only the first split is published.
FILES = {
    "train": ("LISA_Plus_Instance_Seg", "LISA_Plus_COT", "LISA_Plus_Conversations", "LISA_Plus_Caption"),
    "val": ("LISA_Plus_Instance_Seg_val",),
}
BY_ID = 3  # every third image has only the ids of its masks; the masks are in COCO's file
DESCRIBE = "describe the picture, and show what you mention."


def has_things(scene: Scene) -> bool:
    return len(scene.things) >= 2


def write_lisa_plus(root: Path, source: SceneSource) -> None:
    """reason_seg_plus/LISA_Plus_*.json and COCO's masks; images in refer_seg/images/mscoco/images."""
    for split, files in FILES.items():
        where = f"{split}2017"
        images = folder(root / "refer_seg" / "images" / "mscoco" / "images" / where)
        book = Book((), file_format="{:012d}.jpg", first_image=FIRST_IMAGE[split])
        entries: dict[str, list[dict[str, Any]]] = {name: [] for name in files}
        for drawn in source.scenes("lisa_plus", split, has_things):
            image = book.add_image(drawn.scene)
            write_jpg(images / image["file_name"], drawn.scene.image)
            ids = [book.add_annotation(image, thing) for thing in drawn.scene.things]
            about = entries_about(drawn, image["file_name"], ids)
            for part, entry in zip(entries.values(), about, strict=False):
                part.append(entry)
        for name, part in entries.items():
            write_json(root / "reason_seg_plus" / f"{name}.json", part)
        write_json(root / "coco" / "annotations" / f"instances_{where}.json", book.instances())


def entries_about(drawn: Drawn, image: str, ids: list[int]) -> list[dict[str, Any]]:
    """An entry of each part; `ids` has one for each thing of the scene."""
    scene, rng = drawn.scene, drawn.rng
    id_of_thing = {id(thing): number for thing, number in zip(scene.things, ids, strict=True)}
    marks = [f"{number}|{thing.name}" for number, thing in zip(ids, scene.things, strict=True)]
    polygons = {
        str(number): in_form(coco_segmentation(thing.mask, "polygons"), number)
        for number, thing in zip(ids, scene.things, strict=True)
    }
    info: dict[str, Any] = {number: {"polygon": polygon} for number, polygon in polygons.items()}

    groups = [(f"where are {text}?", things) for text, things in pair_expressions(scene, rng)]
    asked, targets = groups[0] if groups else ("what do you see here besides the ground?", scene.things)
    points: dict[str, Any] = {}
    for thing in targets:
        number = str(id_of_thing[id(thing)])
        drawn_as = {} if drawn.number % BY_ID == BY_ID - 1 else {"points": polygons[number]}
        points[number] = {"label name": thing.name, **drawn_as}
    told = "; ".join(
        f"instance id is {number}, label name is {held['label name']}" for number, held in points.items()
    )
    instance = {
        "English Question": asked, "English Answer": told, "img_path": image, "ID": list(points), "points": points,
    }  # fmt: skip

    place = int(rng.integers(len(ids)))
    text = next(iter(expressions(scene, scene.things[place], rng)), f"the {scene.things[place].name}")
    seen = ", ".join(f"《{mark}》" for mark in marks)
    cot = {
        "English Question": f"where is {text}?", "image_path": image, "info": info,
        "English Answer": f"there are [{seen}]. {text} is <{marks[place]}>.",
    }  # fmt: skip
    first = " and ".join(f"<{mark}>" for mark in marks)
    turns = [("what is in the picture?", f"there is {first}."), *questions(scene, rng)[:2]]
    output = "\n".join(f"<person>: {question}\n<robot>: {answer}" for question, answer in turns)
    dialogue = {"img_pth": image, "output": output, "info": info}
    caption = {
        "English Question": DESCRIBE, "image_path": image, "info": polygons,
        "English Answer": f"the picture shows {_with_nouns(scene, marks)}.",
    }  # fmt: skip
    return [instance, cot, dialogue, caption]


def in_form(segmentation: Segmentation, number: int) -> Any:
    """Polygons with flat coordinates or with points as pairs, and a single one perhaps without the outer list."""
    if isinstance(segmentation, dict) or number % 2:
        return segmentation
    pairs = [list(map(list, zip(outline[::2], outline[1::2], strict=True))) for outline in segmentation]
    return pairs[0] if len(pairs) == 1 and number % 4 else pairs


def _with_nouns(scene: Scene, marks: Iterable[str]) -> str:
    return ", ".join(f"a {thing.name}《{mark}》" for thing, mark in zip(scene.things, marks, strict=True))
