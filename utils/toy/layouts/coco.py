"""COCO images, their COCO-Stuff labels, and the LLaVA-Instruct dialogues about them."""

from pathlib import Path
from typing import Any

from utils.toy.language import caption, questions
from utils.toy.layouts.common import Drawn, SceneSource, folder, write_jpg, write_json, write_png
from utils.toy.layouts.semantic import label_values

FIRST_IMAGE_ID = {"train": 1, "val": 500_000}  # the splits' ids are disjoint
DIALOGUES = {"train": "llava_instruct_150k.json", "val": "llava_instruct_150k_val.json"}
MAX_TURNS = 6
DESCRIBED = 0.4  # fraction of the training images that also get a description
DESCRIBE = ("describe the picture.", "what do you see in this image?", "give a description of the scene.")


def write_coco(root: Path, source: SceneSource, label_folder: str = "cocostuff") -> None:
    """coco/SPLIT/%012d.jpg, cocostuff/SPLIT/%012d.png (SPLIT: train2017, val2017) and llava_dataset/*.json.

    The held-out dialogues have only short answers, so that exact match is meaningful.
    """
    values = label_values("cocostuff")
    for split, file_name in DIALOGUES.items():
        images = folder(root / "coco" / f"{split}2017")
        labels = folder(root / label_folder / f"{split}2017")
        dialogues = []
        for drawn in source.scenes("coco", split):
            stem = image_stem(split, drawn.number)
            write_jpg(images / f"{stem}.jpg", drawn.scene.image)
            write_png(labels / f"{stem}.png", values[drawn.scene.label])
            dialogues += dialogues_about(drawn, stem, described=split == "train")
        write_json(root / "llava_dataset" / file_name, dialogues)


def image_stem(split: str, number: int) -> str:
    """The name of an image in coco/SPLIT2017, without its suffix."""
    return f"{FIRST_IMAGE_ID[split] + number:012d}"


def dialogues_about(drawn: Drawn, stem: str, *, described: bool) -> list[dict[str, Any]]:
    """A dialogue of several turns; if `described`, others with further questions and sometimes a description."""
    pairs = questions(drawn.scene, drawn.rng)
    dialogues = [_dialogue(stem, f"{stem}.jpg", pairs[:MAX_TURNS])]
    if not described:
        return dialogues
    for first in range(MAX_TURNS, len(pairs), MAX_TURNS):
        further = pairs[first : first + MAX_TURNS]
        dialogues.append(_dialogue(f"{stem}_{first}", f"{stem}.jpg", further))
    if drawn.rng.random() < DESCRIBED:
        ask = DESCRIBE[int(drawn.rng.integers(len(DESCRIBE)))]
        told = [(ask, caption(drawn.scene, drawn.rng))]
        dialogues.append(_dialogue(f"{stem}_described", f"{stem}.jpg", told))
    return dialogues


def _dialogue(entry_id: str, image: str, pairs: list[tuple[str, str]]) -> dict[str, Any]:
    turns = []
    for number, (question, answer) in enumerate(pairs):
        turns.append({"from": "human", "value": question if number else f"<image>\n{question}"})
        turns.append({"from": "gpt", "value": answer})
    return {"id": entry_id, "image": image, "conversations": turns}
