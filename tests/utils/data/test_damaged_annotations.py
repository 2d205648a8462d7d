"""A few hundred damaged annotation files: every one is a counted skip or a clear error, never anything else."""

from __future__ import annotations

import copy
import json
import math
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.errors import UserError
from tests.utils.data.layouts import (
    HEIGHT,
    WIDTH,
    box_polygon,
    compressed_rle,
    reference,
    save,
    seeded_image,
    uncompressed_rle,
)
from utils.data.registry import Entry
from utils.data.types import UnusableItemError

DEEP: Any = []
for _ in range(200):
    DEEP = [DEEP]
# What takes the place of any value in a file.
INTRUDERS = (
    *(
        None,
        True,
        "",
        "x",
        "7",
        "../..",
        "\x00",
        "\ud800",
        "a" * 5000,
        0,
        -1,
        2**40,
        10**400,
        1.5,
        1e8,
        -1e9,
        1e300,
    ),
    *(
        math.nan,
        math.inf,
        [],
        {},
        [None],
        [[]],
        [{}],
        {"x": 1},
        [1, [2, [3]]],
        DEEP,
        ["1", "2", "3", "4", "5", "6"],
    ),
)
REMOVED = object()
MASK = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
MASK[4:12, 5:20] = 1
BOX = box_polygon(3, 4, 10, 8)


@dataclass(frozen=True)
class Layout:
    """A small valid data set in one format: its annotations, and how they lie on disk."""

    entry: Entry
    content: Any
    write: Callable[[Path, Any], None]
    is_evaluated: bool = True


def write_json(*parts: str) -> Callable[[Path, Any], None]:
    def write(root: Path, content: Any) -> None:
        path = root.joinpath(*parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content), encoding="utf-8")

    return write


def write_lines(root: Path, content: Any) -> None:
    lines = content if isinstance(content, list) else [content]
    (root / "talk.jsonl").write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")


def write_references(name: str, refs_file: str) -> Callable[[Path, Any], None]:
    def write(root: Path, content: Any) -> None:
        folder = root / "refer_seg" / name
        folder.mkdir(parents=True, exist_ok=True)
        both = content if isinstance(content, dict) else {}
        (folder / refs_file).write_bytes(pickle.dumps(both.get("refs")))
        (folder / "instances.json").write_text(json.dumps(both.get("instances")), encoding="utf-8")

    return write


def write_instances(root: Path, content: Any) -> None:
    both = content if isinstance(content, dict) else {}
    write_json("coco", "annotations", "instances_train2017.json")(root, both.get("coco"))
    write_json("reason_seg_plus", "LISA_Plus_Instance_Seg.json")(root, both.get("entries"))


def marked(ref: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A reference with further keys in its last sentence."""
    ref["sentences"][-1] |= more
    return ref


COCO = {
    "images": [
        {"id": 1, "file_name": "1.png", "height": HEIGHT, "width": WIDTH, "neg_category_ids": [3]},
        {"id": 2, "file_name": "2.png", "not_exhaustive_category_ids": [2]},
    ],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [BOX], "iscrowd": 0},
        {"id": 2, "image_id": 1, "category_id": 2, "segmentation": compressed_rle(MASK), "iscrowd": 1},
        {"id": 3, "image_id": 2, "category_id": 1, "segmentation": uncompressed_rle(MASK), "iscrowd": 1},
    ],
    "categories": [
        {"id": 1, "name": "boat", "supercategory": "thing"},
        {"id": 2, "name": "dog"},
        {"id": 3, "name": "cat"},
    ],
}
PACO = {
    **COCO,
    "images": [{**image, "file_name": f"train2017/{image['file_name']}"} for image in COCO["images"]],
}
LINES = [
    {
        "image": "1.png",
        "conversations": [{"from": "human", "value": "Where?"}, {"from": "gpt", "value": "[SEG] and [SEG]."}],
        "masks": [[BOX], compressed_rle(MASK)],
    },
    {
        "image": "2.png",
        "conversations": [{"from": "human", "value": "A cat?"}, {"from": "gpt", "value": "[NEG]."}],
    },
]
SHAPES = {
    "text": ["what?", "which?"],
    "is_sentence": True,
    "shapes": [
        {"label": "target", "shape_type": "polygon", "points": [[3, 4], [20, 4], [20, 15]]},
        {"label": "ignore", "shape_type": "circle", "points": [[8, 8], [8, 10]]},
        {"label": "flag", "points": []},
    ],
}
REFERENCES = {
    "refs": [reference(0, 1, 1, "train", "a", "b"), reference(1, [1, 2], 1, "train", "c")],
    "instances": {
        "images": [{"id": 1, "file_name": "1.png", "height": HEIGHT, "width": WIDTH}],
        "annotations": [{"id": 1, "segmentation": [BOX]}, {"id": 2, "segmentation": compressed_rle(MASK)}],
    },
}
TALK = [
    {
        "id": str(number),
        "image": f"{number}.png",
        "conversations": [
            {"from": ("human", "gpt")[place % 2], "value": text}
            for place, text in enumerate(("<image>\nWhat?", "A.", "Why?", "So."))
        ],
    }
    for number in (1, 2)
]
CUP = {"segmentation": [BOX], "category_name": "cup", "rephrased_name": "the red cup"}
QUESTIONS = [
    {
        "coco_url": "http://images.cocodataset.org/train2017/1.png",
        "height": HEIGHT,
        "width": WIDTH,
        "questions": ["Both?"],
        "answers": [[CUP, {"segmentation": compressed_rle(MASK), "category_name": "dish"}]],
        "text_answers": ["the cup {seg} and the dish {seg}."],
    }
]
MASKS = {"11": {"polygon": [BOX]}, "12": compressed_rle(MASK)}
INSTANCES = [
    {
        "English Question": "Which?",
        "img_path": "1.png",
        "ID": ["11", 12],
        "points": {"11": {"label name": "cup", "points": [BOX]}},
    }
]
TOLD = [
    {"English Question": "Why?", "English Answer": "[<11|a>, <12|b>]", "image_path": "2.png", "info": MASKS}
]
TALKED = [{"output": "<person>: Why? <robot>: 《11|a》 <person>: <12|b>?", "img_pth": "2.png", "info": MASKS}]
ANNOTATIONS = {
    "categories": [{"id": 1, "name": "cup"}],
    "annotations": [{"id": 12, "image_id": 1, "category_id": 1, "segmentation": compressed_rle(MASK)}],
}
LAYOUTS = {
    "own_coco": Layout(
        Entry("own_coco", ("ROOT/boats.json", "exhaustive=true")), COCO, write_json("boats.json")
    ),
    "own_jsonl": Layout(Entry("own_jsonl", ("ROOT/talk.jsonl",)), LINES, write_lines),
    "ReasonSeg": Layout(
        Entry("ReasonSeg", ("train",)), SHAPES, write_json("reason_seg", "ReasonSeg", "train", "1.json")
    ),
    "refcoco": Layout(Entry("refcoco", ("train",)), REFERENCES, write_references("refcoco", "refs(unc).p")),
    "R-refcoco": Layout(
        Entry("R-refcoco", ("train",)),
        {**REFERENCES, "refs": [marked(reference(0, 1, 1, "train", "a", "b"), exist=False)]},
        write_references("R-refcoco", "refs(unc).p"),
    ),
    "refzom": Layout(
        Entry("refzom", ("train",)),
        {**REFERENCES, "refs": [{**reference(0, [1, 2], 1, "train", "a"), "source": "many"}]},
        write_references("refzom", "Ref_ZOM.p"),
    ),
    "MUSE": Layout(Entry("MUSE", ("train",)), QUESTIONS, write_json("muse", "muse_train.json")),
    "LISA++|instance": Layout(
        Entry("LISA++", ("instance", "train")),
        {"entries": INSTANCES, "coco": ANNOTATIONS},
        write_instances,
    ),
    "LISA++|cot": Layout(
        Entry("LISA++", ("cot",)),
        TOLD,
        write_json("reason_seg_plus", "LISA_Plus_COT.json"),
        is_evaluated=False,
    ),
    "LISA++|conversations": Layout(
        Entry("LISA++", ("conversations",)),
        TALKED,
        write_json("reason_seg_plus", "LISA_Plus_Conversations.json"),
        is_evaluated=False,
    ),
    "llava_instruct_150k": Layout(
        Entry("llava_instruct_150k", ("train",)),
        TALK,
        write_json("llava_dataset", "llava_instruct_150k.json"),
    ),
    "llava_mix": Layout(
        Entry("llava_mix"),
        [{**TALK[0], "image": "coco/train2017/1.png"}, {"id": "2", "model": "", "conversations": []}],
        write_json("llava_dataset", "llava_v1_5_mix665k.json"),
        is_evaluated=False,
    ),
    "paco_lvis": Layout(
        Entry("paco_lvis"),
        PACO,
        write_json("vlpart", "paco", "annotations", "paco_lvis_v1_train.json"),
        is_evaluated=False,
    ),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images of all layouts."""
    root = tmp_path_factory.mktemp("damaged")
    folders = ("", "reason_seg/ReasonSeg/train", "refer_seg/images/mscoco/images/train2014", "coco/train2017")
    for folder in folders:
        for seed in (1, 2)[: 1 if "ReasonSeg" in folder else 2]:
            save(root / folder / f"{seed}.{'jpg' if 'ReasonSeg' in folder else 'png'}", seeded_image(seed))
    return root


def places(content: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value in nested lists and dictionaries; of long lists to the first three."""
    yield at
    if isinstance(content, dict):
        for key, value in content.items():
            yield from places(value, (*at, key))
    elif isinstance(content, list):
        for index, value in enumerate(content[:3]):
            yield from places(value, (*at, index))


def replaced(content: Any, at: tuple[Any, ...], intruder: Any) -> Any:
    """A copy with another value in one place, or without it."""
    if not at:
        return None if intruder is REMOVED else intruder
    made = copy.deepcopy(content)
    inside = made
    for step in at[:-1]:
        inside = inside[step]
    if intruder is REMOVED:
        del inside[at[-1]]
    else:
        inside[at[-1]] = intruder
    return made


def use(layout: Layout, root: Path, recipe: Any) -> str:
    """Open and read everything as training and evaluation do; "ok", or what it said."""
    fields = tuple(field.replace("ROOT", str(root)) for field in layout.entry.fields)
    said = "ok"
    for training in (True, False)[: 1 + layout.is_evaluated]:
        try:
            dataset = Entry(layout.entry.name, fields).open(root, training=training)
        except (UserError, OSError) as problem:
            said = str(problem)
            continue
        if dataset.dropped:
            said = dataset.dropped[0]
        for index in range(dataset.num_items if training else len(dataset)):
            try:
                if training:
                    dataset.sample_of(index, np.random.default_rng(0), recipe)
                else:
                    dataset[index]
            except UnusableItemError as problem:
                said = str(problem)
    return said


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_wrong_value_anywhere_is_a_skip_or_a_clear_error(root, recipe, name):
    layout = LAYOUTS[name]
    layout.write(root, layout.content)
    assert use(layout, root, recipe) == "ok"
    rng = np.random.default_rng(0)
    every_place = list(places(layout.content))
    for at in every_place:
        for intruder in (REMOVED, *(INTRUDERS[k] for k in rng.permutation(len(INTRUDERS))[:8])):
            layout.write(root, replaced(layout.content, at, intruder))
            said = use(layout, root, recipe)
            assert len(said) < 3000, f"{at}: {said[:200]}"
    assert len(every_place) > 15


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_file_that_is_cut_or_has_wrong_bytes_is_a_skip_or_a_clear_error(root, recipe, name):
    layout = LAYOUTS[name]
    rng = np.random.default_rng(1)
    for trial in range(30):
        layout.write(root, layout.content)
        files = [path for path in root.rglob("*.*") if path.suffix in (".json", ".jsonl", ".p")]
        path = max(files, key=lambda path: path.stat().st_mtime_ns)
        written = bytearray(path.read_bytes())
        if trial % 3:
            for place in rng.integers(len(written), size=3):
                written[place] = rng.integers(256)
        else:
            del written[int(rng.integers(len(written))) :]
        path.write_bytes(bytes(written))
        assert use(layout, root, recipe)
        path.write_bytes(b"[" * 100_000)
    assert use(layout, root, recipe) != "ok"
