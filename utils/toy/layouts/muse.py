"""MUSE: questions about several things of a scene, with and without a text answer."""

from pathlib import Path
from typing import Any

from utils.toy.language import expressions, pair_expressions
from utils.toy.layouts.common import Drawn, SceneSource, folder, write_jpg, write_json
from utils.toy.layouts.polygons import coco_segmentation
from utils.toy.scene import Scene, Thing

# Split -> the folder of its images. Every third training image is one of train2014, which has no URL.
FOLDERS = {"train": "train2017", "val": "val2017", "test_less": "val2017", "test_many": "val2017"}
SCENES = {"train": "train", "val": "val", "test_less": "testA", "test_many": "testB"}
MAX_QUESTIONS = 3
MANY = 3  # targets of a question in test_many, at least where the scene has as many


def write_muse(root: Path, source: SceneSource) -> None:
    """muse/muse_{train,val,test_less,test_many}.json; images in refer_seg/images/mscoco/images."""
    images = root / "refer_seg" / "images" / "mscoco" / "images"
    for number, split in enumerate(FOLDERS):
        entries = []
        for drawn in source.scenes("muse", SCENES[split], lambda scene: len(scene.things) >= 2):
            where, image = _image_of(split, 400_001 + 1000 * number + drawn.number, drawn.number)
            write_jpg(
                folder(images / where) / image.get("file_name", f"{image['id']:012d}.jpg"), drawn.scene.image
            )
            entries.append({**image, **_questions(drawn, many=split == "test_many")})
        write_json(root / "muse" / f"muse_{split}.json", entries)


def _image_of(split: str, image_id: int, number: int) -> tuple[str, dict[str, Any]]:
    if split == "train" and number % 3 == 2:
        return "train2014", {"id": image_id, "file_name": f"COCO_train2014_{image_id:012d}.jpg"}
    where = FOLDERS[split]
    return where, {"id": image_id, "coco_url": f"http://images.example/{where}/{image_id:012d}.jpg"}


def _questions(drawn: Drawn, *, many: bool) -> dict[str, Any]:
    """Height, width, annotations, questions and answers; odd scenes have no text answers."""
    scene, rng = drawn.scene, drawn.rng
    height, width = scene.label.shape
    targets = {id(thing): _annotation(scene, thing, drawn) for thing in scene.things}
    groups = [(f"where are {text}?", list(things)) for text, things in pair_expressions(scene, rng)]
    groups.append(("what do you see here besides the ground?", list(scene.things)))
    asked = [group for group in groups if len(group[1]) >= MANY] if many else groups
    asked = (asked or groups)[-MAX_QUESTIONS:]
    answers = [[targets[id(thing)] for thing in things] for _, things in asked]
    entry = {
        "height": height, "width": width, "ann_list": list(targets.values()),
        "questions": [text for text, _ in asked], "answers": answers,
    }  # fmt: skip
    if drawn.number % 2 == 0:
        entry["text_answers"] = [
            "there is " + " and ".join(f"{target['rephrased_name']} {{seg}}" for target in answer) + "."
            for answer in answers
        ]
    return entry


def _annotation(scene: Scene, thing: Thing, drawn: Drawn) -> dict[str, Any]:
    left, top, right, bottom = thing.box
    told = expressions(scene, thing, drawn.rng)
    return {
        "segmentation": coco_segmentation(thing.mask, "polygons"), "bbox": [left, top, right - left, bottom - top],
        "category_id": 1, "category_name": thing.name, "rephrased_name": told[0] if told else f"a {thing.name}",
    }  # fmt: skip
