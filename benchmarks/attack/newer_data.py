"""R-RefCOCO, Ref-ZOM, MUSE, LISA++ and LLaVA's mixture: code, wrong types, names that lead outside."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.attack.data import HUGE_PICKLES, TYPES, VALUES
from benchmarks.attack.desk import Attack, Desk, check, coco, preview, write_image
from benchmarks.attack.outside import IN_DATA
from benchmarks.attack.pickles import KIND as PICKLES
from benchmarks.attack.pickles import PAYLOADS, refer_data

REFZOM, ABSENT = "refzom", "R-refcoco"
FILES = {REFZOM: "Ref_ZOM.p", ABSENT: "refs(unc).p"}
SOURCES = {REFZOM: "refer_seg", ABSENT: "neg_refer_seg"}
REFERENCE: dict[str, Any] = {
    "ref_id": 1, "ann_id": [101], "image_id": 1, "split": "train", "category_id": 1, "source": "one",
    "sentences": [{"sent": "the dog", "raw": "the dog", "exist": True}, {"sent": "a cat", "raw": "a cat"}],
}  # fmt: skip
REFERENCE_FIELDS: dict[str, tuple[Any, ...]] = {
    "source": ("source",), "ann_id": ("ann_id",), "annotation": ("ann_id", 0), "exist": ("sentences", 0, "exist"),
    "is_false_premise": ("sentences", 0, "is_false_premise"), "sentences": ("sentences",),
    "raw": ("sentences", 0, "raw"), "sent": ("sentences", 0, "sent"),
}  # fmt: skip
TARGET = {"segmentation": [[2, 2, 20, 2, 20, 20, 2, 20]], "category_name": "dog", "rephrased_name": "the dog"}
QUESTION: dict[str, Any] = {
    "file_name": "a.png", "height": 30, "width": 40, "questions": ["Where is the dog?"], "answers": [[TARGET]],
    "text_answers": ["the dog {seg}."],
}  # fmt: skip
MUSE_FIELDS: dict[str, tuple[Any, ...]] = {
    **{name: (name,) for name in QUESTION}, "coco_url": ("coco_url",), "question": ("questions", 0),
    "answer": ("answers", 0), "target": ("answers", 0, 0), "segmentation": ("answers", 0, 0, "segmentation"),
    "coordinate": ("answers", 0, 0, "segmentation", 0, 0), "category_name": ("answers", 0, 0, "category_name"),
    "text answer": ("text_answers", 0),
}  # fmt: skip
MASK = {"label name": "dog", "points": [[2, 2, 20, 2, 20, 20, 2, 20]]}
INSTANCE: dict[str, Any] = {
    "English Question": "Where is the dog?", "img_path": "a.png", "ID": ["1"], "points": {"1": MASK},
}  # fmt: skip
TALK: dict[str, Any] = {
    "img_pth": "a.png",
    "output": "<person>: What? <robot>: A <1|dog>.",
    "info": {"1": MASK},
}
LISA_FIELDS: dict[str, tuple[Any, ...]] = {
    **{name: (name,) for name in INSTANCE}, "an id": ("ID", 0), "mask": ("points", "1"),
    "label name": ("points", "1", "label name"), "polygons": ("points", "1", "points"),
    "coordinate": ("points", "1", "points", 0, 0),
}  # fmt: skip
LISA_TEXTS = {  # of an answer
    "a million references": "<1|dog>" * 10**6, "a million brackets": "[<" * 10**6, "a million labels": "<1|" * 10**6,
    "a number of a million digits": f"<{'1' * 10**6}|dog>", "HTML": "<1|<script>alert(1)</script>> <1|dog>",
    "tokens": "[SEG] <image> </s> <1|[SEG]>", "turns": "<1|dog> <person>: " * 10**5,
    "a million spaces": f"<{' ' * 10**6}1|dog>",
}  # fmt: skip
DIALOGUE: dict[str, Any] = {
    "id": "1", "image": "coco/train2017/a.png",
    "conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A dog."}],
}  # fmt: skip
DIALOGUE_FIELDS: dict[str, tuple[Any, ...]] = {
    "image": ("image",), "conversations": ("conversations",), "turn": ("conversations", 0),
    "from": ("conversations", 0, "from"), "value": ("conversations", 0, "value"),
}  # fmt: skip
NAMES = ("../../outside/secret.png", "../../../../../../../outside/secret.png", "OUTSIDE/secret.png",
         "file://OUTSIDE/secret.png", "coco/train2017/../../../outside/secret.png", "~/x.png", "..", "",
         "a.png\0.txt", "\x1b[31mred.png")  # fmt: skip


def changed(content: Any, keys: tuple[Any, ...], value: Any) -> Any:
    """A copy with one entry exchanged."""
    found = inner = copy.deepcopy(content)
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    return found


def referring(name: str, content: bytes, desk: Desk, file_name: str = "a.png") -> int:
    """R-RefCOCO or Ref-ZOM of one image, with these references."""
    refer_data(desk.here)
    root = desk.here / "refer_seg"
    (root / "refcoco").rename(root / name)
    instances = coco(["dog"], [file_name.replace("OUTSIDE", str(desk.outside))])
    (root / name / "instances.json").write_text(json.dumps(instances))
    (root / name / FILES[name]).write_bytes(content)
    entry = (SOURCES[name], f"--{SOURCES[name]}_data={name}")
    return check(*entry) if file_name == "a.png" else preview(*entry)


def _references(name: str, references: Any, desk: Desk) -> int:
    return referring(name, pickle.dumps(references, 2), desk)


def _image_named(name: str, file_name: str, desk: Desk) -> int:
    return referring(name, pickle.dumps([REFERENCE], 2), desk, file_name)


def _code(name: str, payload: str, desk: Desk) -> int:
    desk.evil_module(desk.here)
    return referring(name, PAYLOADS[payload](desk.shell), desk)


def muse(entries: Any, desk: Desk, *, shows: bool = False) -> int:
    """MUSE of these entries."""
    for folder in ("refer_seg/images/mscoco/images/train2014", "coco/train2017", "muse"):
        (desk.here / folder).mkdir(parents=True, exist_ok=True)
    for folder in ("refer_seg/images/mscoco/images/train2014", "coco/train2017"):
        write_image(desk.here / folder / "a.png")
    text = json.dumps(entries).replace("OUTSIDE", str(desk.outside))
    (desk.here / "muse/muse_train.json").write_text(text)
    entry = ("reason_seg", "--reason_seg_data=MUSE")
    return preview(*entry) if shows else check(*entry)


def lisa_plus(entries: Any, desk: Desk, *, part: str = "instance", shows: bool = False) -> int:
    """LISA++ of these entries."""
    for folder in ("coco/train2017", "reason_seg_plus"):
        (desk.here / folder).mkdir(parents=True, exist_ok=True)
    write_image(desk.here / "coco/train2017/a.png")
    name = "LISA_Plus_Instance_Seg" if part == "instance" else "LISA_Plus_Conversations"
    text = json.dumps(entries).replace("OUTSIDE", str(desk.outside))
    (desk.here / f"reason_seg_plus/{name}.json").write_text(text)
    entry = ("reason_seg", f"--reason_seg_data=LISA++|{part}")
    return preview(*entry) if shows else check(*entry)


def mixture(entries: Any, desk: Desk, *, shows: bool = False) -> int:
    """LLaVA's mixture of these entries."""
    for folder in ("coco/train2017", "llava_dataset"):
        (desk.here / folder).mkdir(parents=True, exist_ok=True)
    shutil.copy("a.png", "coco/train2017/a.png")
    text = json.dumps(entries).replace("OUTSIDE", str(desk.outside))
    Path("llava_dataset/llava_v1_5_mix665k.json").write_text(text)
    entry = ("vqa", "--vqa_data=llava_mix")
    return preview(*entry) if shows else check(*entry)


def attacks() -> Iterator[Attack]:
    for name in FILES:
        for payload in PAYLOADS:
            quick = (name, payload) == (REFZOM, "REDUCE")
            yield Attack(PICKLES, f"{FILES[name]} of {name}, {payload}", partial(_code, name, payload), quick)
        for field, keys in REFERENCE_FIELDS.items():
            for what, value in VALUES.items():
                references = [changed(REFERENCE, keys, value), REFERENCE]
                yield Attack(TYPES, f"{name}, {field} is {what}", partial(_references, name, references))
        for file_name in NAMES:
            yield Attack(IN_DATA, f"{name}, {file_name!a}", partial(_image_named, name, file_name))
    for what, content in HUGE_PICKLES.items():
        yield Attack(TYPES, f"Ref_ZOM.p, {what}", partial(referring, REFZOM, content))
    for field, keys in MUSE_FIELDS.items():
        for what, value in VALUES.items():
            quick = (field, what) == ("segmentation", "2^70")
            entries = [changed(QUESTION, keys, value), QUESTION]
            yield Attack(TYPES, f"MUSE, {field} is {what}", partial(muse, entries), quick)
    for field, keys in LISA_FIELDS.items():
        for what, value in VALUES.items():
            entries = [changed(INSTANCE, keys, value), INSTANCE]
            yield Attack(TYPES, f"LISA++, {field} is {what}", partial(lisa_plus, entries))
    for what, text in LISA_TEXTS.items():
        entries = [{**TALK, "output": f"<person>: What? <robot>: {text}"}, TALK]
        for shows in (True, False):
            attack = partial(lisa_plus, entries, part="conversations", shows=shows)
            yield Attack(TYPES, f"LISA++, {what}, {'shown' if shows else 'checked'}", attack)
    for field, keys in DIALOGUE_FIELDS.items():
        for what, value in VALUES.items():
            entries = [changed(DIALOGUE, keys, value), DIALOGUE]
            yield Attack(TYPES, f"llava_mix, {field} is {what}", partial(mixture, entries))
    for file_name in NAMES:
        named = [{**QUESTION, "file_name": file_name}, QUESTION]
        yield Attack(IN_DATA, f"MUSE, {file_name!a}", partial(muse, named, shows=True))
        address = {key: value for key, value in QUESTION.items() if key != "file_name"}
        address["coco_url"] = f"http://images.cocodataset.org/train2017/{file_name}"
        yield Attack(IN_DATA, f"MUSE, coco_url {file_name!a}", partial(muse, [address, QUESTION], shows=True))
        instances = [{**INSTANCE, "img_path": file_name}, INSTANCE]
        yield Attack(IN_DATA, f"LISA++, {file_name!a}", partial(lisa_plus, instances, shows=True))
        dialogues = [{**DIALOGUE, "image": file_name}, DIALOGUE]
        yield Attack(IN_DATA, f"llava_mix, {file_name!a}", partial(mixture, dialogues, shows=True))
