"""A data set whose index is in the cache gives the samples, and tells the faults, of one in memory."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import pytest

from tests.utils.data.coco_files import BOX, annotation, content
from tests.utils.data.layouts import (
    HEIGHT,
    WIDTH,
    box_polygon,
    save,
    save_json,
    seeded_image,
    uncompressed_rle,
)
from utils.data.index import cache
from utils.data.index.rows import RowFile, Rows
from utils.data.mixture import Mixture
from utils.data.registry import parse_entry
from utils.toy.world import WorldConfig, make_world

OWN = (
    *(
        "own_coco:{}/own/boats.json",
        "own_coco:{}/own/boats.json|exhaustive=true",
        "own_coco:{}/own/lvis.json",
    ),
    "own_jsonl:{}/own/talk.jsonl",
)
PUBLISHED = (
    *("refclef", "refcoco", "refcoco+", "refcocog", "grefcoco", "refzom", "R-refcoco", "fprefcoco"),
    *("llava_instruct_150k", "MUSE", "LISA++|instance"),
)
LAYOUTS = (
    "coco,refer,refclef,refcoco+,refcocog,refer_absent,refzom,muse,lisa_plus,llava_mix,pascal_part,paco_lvis"
)
FOR_TRAINING = (
    *("pascal_part", "paco_lvis", "llava_mix"),
    *("LISA++|cot", "LISA++|conversations", "LISA++|caption"),
)
CASES = [
    *((name, training) for name in (*OWN, *PUBLISHED) for training in (True, False)),
    *((name, True) for name in FOR_TRAINING),
    *((name, False) for name in ("refcoco|testA", "MUSE|test_less")),
]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Every published layout that has an index."""
    root = tmp_path_factory.mktemp("world")
    make_world(WorldConfig(out=str(root), num_images=3, num_val=2, layouts=LAYOUTS))
    return root


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """Own data with what is left out, noted, or written in another form."""
    root = tmp_path_factory.mktemp("data")
    own = root / "own"
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    mask[3:9, 4:20] = 1
    drawn = [
        annotation(5, [BOX]),
        annotation(10, uncompressed_rle(mask), image_id=2, iscrowd=1),
        annotation(15, [[1, 1], [9, 1], [9.25, 9.125]], image_id=3),  # points as pairs
        annotation(5, [box_polygon(1, 1, 5, 5), [3, 3, 3.1, 3, 3, 3.1]], image_id=3),  # a leftover of a tool
        annotation(5, [BOX], image_id=4, ignore=1),
    ]
    file = content(*drawn, num_images=6)
    save_json(own / "boats.json", file)
    file["images"][1]["neg_category_ids"] = [15, 99]
    file["images"][2]["not_exhaustive_category_ids"] = [5]
    save_json(own / "lvis.json", file)
    lines = []
    for number in range(1, 6):  # image 6 is missing
        save(own / "images" / f"{number}.png", seeded_image(number))
        turns = [("human", "Where is the crack?"), ("gpt", "It is [SEG]." if number % 2 else "[neg] nothing")]
        masks = [[BOX]] if number % 2 else []
        talk = [{"from": who, "value": text} for who, text in turns]
        lines.append({"image": f"{number}.png", "conversations": talk, "masks": masks})
    lines += [lines[0] | {"image": "gone.png"}, lines[0] | {"masks": [uncompressed_rle(mask)]}]
    (own / "talk.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return root


def alike(one, other):
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    if is_dataclass(one):
        return type(one) is type(other) and all(
            alike(getattr(one, each.name), getattr(other, each.name)) for each in fields(one)
        )
    if isinstance(one, Sequence) and not isinstance(one, str):
        return type(one) is type(other) and len(one) == len(other) and all(map(alike, one, other))
    return one == other


def described(dataset):
    return {
        "coverage": str(dataset.coverage),
        "examples": dataset.coverage.examples,
        "notes": {what: list(places) for what, places in dataset.notes.items()},
        "numbers": (len(dataset), dataset.num_items, dataset.num_images, dataset.num_annotations),
        "classes": (list(dataset.classes), getattr(dataset.classes, "official", None)),
        "knows": (dataset.knows_absent, dataset.has_no_target),
        "splits": (dataset.name, dataset.split, dataset.splits),
    }


def all_of(dataset, recipe, training):
    if training:
        drawn = Mixture([dataset], [1.0], recipe=recipe, seed=3)
        return [drawn[index] for index in range(8)]
    return [dataset[index] for index in range(len(dataset))]


@contextmanager
def watched_reads(root):
    """Collects the files that are opened and the folders that are listed below `root`."""
    seen, on = set(), [True]

    def hook(event, arguments):
        if (
            on
            and event in ("open", "os.listdir", "os.scandir")
            and isinstance(arguments[0], str | os.PathLike)
        ):
            path = os.path.abspath(arguments[0])
            if path.startswith(str(root)):
                seen.add(path)

    sys.addaudithook(hook)
    yield seen
    on.clear()


@pytest.mark.parametrize(("name", "training"), CASES)
def test_samples_and_messages_are_those_of_an_index_in_memory(
    name, training, request, recipe, cache_folder, monkeypatch, caplog
):
    data = request.getfixturevalue("own" if name in OWN else "world")
    entry = parse_entry(name.format(data), "--dataset")
    caplog.set_level(logging.WARNING)
    monkeypatch.setattr(cache, "_place", cache.OFF)
    in_memory = entry.open(data, training=training)
    said = [record.getMessage() for record in caplog.records]
    monkeypatch.setattr(cache, "_place", str(cache_folder))
    with watched_reads(data) as read:
        first = entry.open(data, training=training)
    caplog.clear()
    later = entry.open(data, training=training)
    assert sorted(record.getMessage() for record in caplog.records) == sorted(said)
    (file,) = cache_folder.glob("*.index")
    recorded = RowFile(file).head(Any)["sources"]
    assert read == {*recorded["files"], *(path for path, names in recorded["folders"].items() if names)}
    for dataset in (first, later):
        [rows] = [value for value in vars(dataset).values() if isinstance(value, Rows)]
        assert len(rows) >= dataset.num_items
        assert described(dataset) == described(in_memory)
        assert alike(all_of(dataset, recipe, training), all_of(in_memory, recipe, training))
