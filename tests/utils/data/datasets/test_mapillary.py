import json

import numpy as np
import pytest

from model.errors import UserError
from tests.utils.data.layouts import blocks, save, save_json, seeded_image
from utils.common.label_values import IGNORE
from utils.data.datasets.mapillary import Mapillary, read_config
from utils.data.types import UnusableItemError

LABELS = [
    {"name": "animal--bird", "readable": "Bird", "evaluate": True, "color": [0, 0, 0], "instances": True},
    {"name": "construction--flat--crosswalk-plain", "readable": "Crosswalk - Plain", "evaluate": True},
    {"name": "void--static", "readable": "Static", "evaluate": False},
    {"name": "object--vehicle--car", "readable": "Car", "evaluate": True},
    {"name": "void--unlabeled", "readable": "Unlabeled", "evaluate": False},
]


def write_mapillary(root, labels, *, config="config_v2.0.json", folder="v2.0/labels", entries=LABELS):
    save_json(root / "mapillary" / config, {"labels": entries})
    for index, label in enumerate(labels):
        save(root / f"mapillary/training/images/{index}.jpg", seeded_image(index, *label.shape))
        save(root / f"mapillary/training/{folder}/{index}.png", label)


def test_values_are_positions_in_the_configuration_and_what_is_not_evaluated_is_ignored(tmp_path):
    write_mapillary(tmp_path, [blocks([0, 1, 2, 3, 4])])
    data = Mapillary(tmp_path, "train")
    assert list(data.classes) == ["bird", "crosswalk - plain", "car"]
    assert data.classes.official[1] == "construction--flat--crosswalk-plain"
    assert np.array_equal(data[0].label, blocks([0, 1, IGNORE, 2, IGNORE]))


def test_version_2_is_chosen_before_version_1(tmp_path):
    names = {"config.json": "One", "config_v1.2.json": "One two", "config_v2.0.json": "Two"}
    folders = {"config.json": "labels", "config_v1.2.json": "v1.2/labels", "config_v2.0.json": "v2.0/labels"}
    for config, readable in names.items():
        entries = [{"name": "a", "readable": readable, "evaluate": True}]
        write_mapillary(tmp_path, [blocks([0])], config=config, folder=folders[config], entries=entries)
        data = Mapillary(tmp_path, "train")
        assert list(data.classes) == [readable.lower()]
        assert data.pairs[0][1].parent == tmp_path / "mapillary/training" / folders[config]


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"mapillary needs .*mapillary; "):
        Mapillary(tmp_path, "train")
    write_mapillary(tmp_path, [blocks([0])])
    with pytest.raises(FileNotFoundError, match=r"validation; .* holds config_v2.0.json, training"):
        Mapillary(tmp_path, "val")
    (tmp_path / "mapillary/config_v2.0.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"config_v2.0.json with .*v2.0/labels or .*holds training"):
        Mapillary(tmp_path, "train")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"classes": []}, "no 'labels' in it"),
        ({"labels": [{"name": "a", "readable": "A"}]}, "label 0: missing or malformed 'evaluate'"),
        ({"labels": ["a"]}, "label 0: missing or malformed"),
        ({"labels": [LABELS[2]]}, "no label has 'evaluate' set"),
        ({"labels": [LABELS[0], {**LABELS[3], "readable": "BIRD"}]}, "'bird' and 'bird' have the same name"),
    ],
)
def test_configuration_files_that_say_too_little_are_refused(tmp_path, content, message):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"config.json.*{message}"):
        read_config(path)


def test_bad_labels_are_named(tmp_path, recipe):
    write_mapillary(tmp_path, [blocks([0, 5]), blocks([0]), blocks([0], 9, 9), blocks([2])])
    root = tmp_path / "mapillary/training"
    (root / "v2.0/labels/1.png").write_bytes(b"")
    save(root / "images/2.jpg", seeded_image(2))
    save(root / "images/extra.jpg", seeded_image(2))
    data = Mapillary(tmp_path, "train")
    assert data.dropped == [f"{root}/images/extra.jpg: no label extra.png in {root}/v2.0/labels"]
    for index, message in enumerate(
        [r"values \[5\] are not in mapillary's", "cannot be decoded", r"\(9, 9\)"]
    ):
        with pytest.raises(UnusableItemError, match=rf"{index}.png.*{message}"):
            data[index]
    data.pairs = data.pairs[3:]
    with pytest.raises(UnusableItemError, match=r"no pixel has a class"):
        data.draw(np.random.default_rng(0), recipe)


@pytest.mark.parametrize(
    "labels", [None, 3, "text", {"a": 1}, [None], [[1]], [{"name": 1, "readable": 2, "evaluate": True}]]
)
def test_a_configuration_of_wrong_types_is_one_line(labels, tmp_path):
    write_mapillary(tmp_path, [blocks([0])], entries=labels)
    with pytest.raises(UserError, match=r"config_v2\.0\.json"):
        Mapillary(tmp_path, "train")
