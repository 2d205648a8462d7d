"""Fields with values of every wrong type: a reason or one message, never another exception."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tests.utils.data.layouts import (
    HEIGHT,
    WIDTH,
    box_polygon,
    dialogue,
    reference,
    save,
    save_json,
    seeded_image,
    write_refer,
)
from utils.data.registry import DATASETS

VALUES = (None, True, -1, float("nan"), 2**70, "evil", [], [1], {"a": 1})
POLYGON = [box_polygon(1, 2, 8, 10)]
IMAGE = "coco/train2017/000000000001.jpg"
TARGET = {"segmentation": POLYGON, "category_name": "cup", "rephrased_name": "the cup"}


def zom() -> list[Any]:
    return [{**reference(0, [11], 1, "train", "a box"), "source": "one"}]


def robust() -> list[Any]:
    ref = reference(0, 11, 1, "train", "a box", "a bus")
    ref["sentences"][1]["exist"] = False
    return [ref]


def muse() -> list[Any]:
    image = {
        "coco_url": "http://images.cocodataset.org/train2017/000000000001.jpg",
        "height": HEIGHT,
        "width": WIDTH,
    }
    return [{**image, "questions": ["Q?"], "answers": [[TARGET]], "text_answers": ["a {seg}."]}]


CONTENTS = {
    "R-refcoco": robust,
    "refzom": zom,
    "MUSE": muse,
    "llava_mix": lambda: [dialogue(IMAGE, "What?", "A.")],
    "llava_instruct_150k": lambda: [dialogue("000000000001.jpg", "What?", "A.")],
}


def spoiled(content: Any) -> Iterator[tuple[str, Any]]:
    """Copies of a content in which one value, at any depth, is of another type; and where."""

    def places(value: Any, path: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
        yield path
        if isinstance(value, dict | list):
            items = value.items() if isinstance(value, dict) else enumerate(value)
            for key, inner in items:
                yield from places(inner, (*path, key))

    for path in places(content, ()):
        for value in VALUES:
            changed = {"content": copy.deepcopy(content)}
            inside: Any = changed
            for key in ("content", *path)[:-1]:
                inside = inside[key]
            inside[("content", *path)[-1]] = value
            yield f"{path} = {value!r}", changed["content"]


def write(root, name: str, content: Any) -> None:
    if name in ("R-refcoco", "refzom"):
        files = {"R-refcoco": "refs(unc).p", "refzom": "Ref_ZOM.p"}
        (root / "refer_seg" / name / files[name]).write_bytes(pickle.dumps(content))
    elif name == "MUSE":
        save_json(root / "muse/muse_train.json", content)
    else:
        file_name = {"llava_mix": "llava_v1_5_mix665k"}.get(name, name)
        save_json(root / f"llava_dataset/{file_name}.json", content)


@pytest.mark.parametrize("name", CONTENTS)
def test_a_value_of_another_type_is_a_reason_or_one_message(tmp_path, recipe, name):
    if name in ("R-refcoco", "refzom"):
        write_refer(tmp_path, name, [], {11: POLYGON}, [1])
    else:
        save(tmp_path / IMAGE, seeded_image(1))
    num_read = 0
    for where, content in [("as it is", CONTENTS[name]()), *spoiled(CONTENTS[name]())]:
        write(tmp_path, name, content)
        try:
            data = DATASETS[name].open(tmp_path, (), training=True)
            for index in range(data.num_items):
                data.sample_of(index, np.random.default_rng(0), recipe)
            data[0]
            num_read += 1
        except (ValueError, FileNotFoundError):
            assert where != "as it is"
        except Exception as problem:
            pytest.fail(f"{where}: {problem!r}")
    assert num_read > 1
