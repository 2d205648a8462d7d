"""LLaVA-1.5's mixture: dialogues about images in several folders, and some without an image."""

from itertools import islice
from pathlib import Path
from typing import Any

from utils.toy.layouts.coco import dialogues_about, image_stem
from utils.toy.layouts.common import Drawn, SceneSource, folder, write_jpg, write_json

FILE_NAME = "llava_v1_5_mix665k.json"
FOLDERS = ("gqa/images", "ocr_vqa/images", "textvqa/train_images", "vg/VG_100K", "vg/VG_100K_2")
SHORT = "\nAnswer the question using a single word or phrase."
TEXTS = (
    ("what is two plus three?", "five."),
    ("name a fruit.", "an apple."),
    ("is the sky green?", "no, the sky is blue."),
)


def write_llava_mix(root: Path, source: SceneSource) -> None:
    """llava_dataset/llava_v1_5_mix665k.json; a sixth of its images are those of COCO, the others have own folders."""
    num_coco = max(1, source.num_train // (len(FOLDERS) + 1))
    entries: list[dict[str, Any]] = []
    for drawn in islice(source.scenes("coco", "train"), num_coco):
        entries.append(_entry(root, drawn, "coco/train2017", image_stem("train", drawn.number)))
    for drawn in islice(source.scenes("llava_mix", "train"), max(1, source.num_train - num_coco)):
        where = FOLDERS[drawn.number % len(FOLDERS)]
        entries.append(_entry(root, drawn, where, str(2_000_000 + drawn.number)))
    for number, (question, answer) in enumerate(TEXTS):
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
        entries.insert(number * 2, {"id": f"text{number}", "model": "", "conversations": turns})
    write_json(root / "llava_dataset" / FILE_NAME, entries)


def _entry(root: Path, drawn: Drawn, where: str, stem: str) -> dict[str, Any]:
    path = folder(root / where) / f"{stem}.jpg"
    if not path.exists():  # COCO's
        write_jpg(path, drawn.scene.image)
    entry = dialogues_about(drawn, stem, described=False)[0]
    entry["image"] = f"{where}/{stem}.jpg"
    for turn in entry["conversations"][::2]:
        turn["value"] += SHORT
    return entry
