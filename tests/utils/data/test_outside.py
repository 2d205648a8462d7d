"""Names in own data that lead out of its folder are refused unless the entry allows them."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from benchmarks.attack.desk import coco, write_image
from utils.data.coverage import NothingUsableError
from utils.data.datasets.own_coco import OwnCoco
from utils.data.datasets.own_jsonl import OwnJsonl
from utils.data.files import FolderListing
from utils.data.types import UnusableItemError

LINE = {"image": "a.png", "conversations": [{"from": "human", "value": "Where?"}, {"from": "gpt", "value": "[SEG]"}],
        "masks": [[[2, 2, 20, 2, 20, 20]]]}  # fmt: skip
LEADING = ("../secret.png", "ABSOLUTE", "x/../../secret.png")


@pytest.fixture
def mine(tmp_path):
    """A folder of data, with an image outside of it."""
    folder = tmp_path / "mine"
    folder.mkdir()
    write_image(folder / "a.png")
    write_image(tmp_path / "secret.png")
    return folder


def named(name, folder):
    return str(folder.parent / "secret.png") if name == "ABSOLUTE" else name


@pytest.mark.parametrize("name", LEADING)
def test_an_image_outside_is_left_out_of_a_coco_file(mine, name):
    (mine / "t.json").write_text(json.dumps(coco(["dog"], ["a.png", named(name, mine)])))
    data = OwnCoco.open(mine, (str(mine / "t.json"), "exhaustive=true"), training=True)
    assert [item.path.name for item in data.items] == ["a.png"]
    assert "leads out of" in data.dropped[0]
    assert "|anywhere=true" in data.dropped[0]


@pytest.mark.parametrize("name", LEADING[:2])
def test_an_image_outside_is_taken_where_the_entry_allows_it(mine, name):
    (mine / "t.json").write_text(json.dumps(coco(["dog"], ["a.png", named(name, mine)])))
    data = OwnCoco.open(mine, (str(mine / "t.json"), "anywhere=true", "exhaustive=true"), training=True)
    assert sorted(item.path.name for item in data.items) == ["a.png", "secret.png"]


def test_names_of_another_machine_mean_the_files_beside(mine):
    names = ["/home/somebody/data/a.png", "../photos/b.png"]
    write_image(mine / "b.png")
    (mine / "t.json").write_text(json.dumps(coco(["dog"], names)))
    data = OwnCoco.open(mine, (str(mine / "t.json"), "exhaustive=true"), training=True)
    assert sorted(item.path for item in data.items) == [mine / "a.png", mine / "b.png"]


def test_a_file_of_images_outside_alone_says_what_allows_them(mine):
    (mine / "t.json").write_text(json.dumps(coco(["dog"], ["../secret.png"])))
    (mine / "images").mkdir()
    with pytest.raises(FileNotFoundError, match=r"\|anywhere=true"):
        OwnCoco.open(mine, (str(mine / "t.json"), f"images={mine / 'images'}"), training=True)


@pytest.mark.parametrize("name", LEADING)
def test_images_and_masks_outside_are_refused_in_a_jsonl_file(mine, name):
    name = named(name, mine)
    Image.new("L", (40, 30), 1).save(mine.parent / "secret.png")
    lines = [LINE, LINE | {"image": name}, LINE | {"masks": [name]}]
    (mine / "t.jsonl").write_text("\n".join(map(json.dumps, lines)))
    data = OwnJsonl.open(mine, (str(mine / "t.jsonl"),), training=True)
    assert [line.number for line in data.lines] == [1, 3]
    assert "leads out of" in data.dropped[0]
    with pytest.raises(UnusableItemError, match=r"leads out of .*\|anywhere=true"):
        data.read(data.lines[1])
    data = OwnJsonl.open(mine, (str(mine / "t.jsonl"), "anywhere=true"), training=True)
    if name != LEADING[2]:  # there is no folder x
        assert data.read(data.lines[-1])[1].all()


def test_a_listing_holds_nothing_outside(tmp_path, mine):
    assert "a.png" in FolderListing(mine)
    for name in ("../secret.png", str(tmp_path / "secret.png"), "../mine/a.png"):
        assert name not in FolderListing(mine)
        assert name in FolderListing(mine, anywhere=True)


def test_nothing_but_names_outside_is_nothing_usable(mine):
    (mine / "t.jsonl").write_text(json.dumps(LINE | {"image": "../secret.png"}) + "\n")
    with pytest.raises((FileNotFoundError, NothingUsableError)):
        OwnJsonl.open(mine, (str(mine / "t.jsonl"), f"images={mine}"), training=True)
