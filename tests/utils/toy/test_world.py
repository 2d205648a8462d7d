"""Every layout, read back with PIL, pycocotools and the ordinary readers, equals the scenes drawn."""

import json
import pickle
from hashlib import sha256
from itertools import islice

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from utils.common.label_values import IGNORE
from utils.data.class_lists import load_class_list
from utils.data.datasets.cityscapes import Cityscapes
from utils.data.datasets.cocostuff import CocoStuff
from utils.data.datasets.grefcoco import GRefCoco
from utils.data.datasets.llava_instruct import LlavaInstruct
from utils.data.datasets.reason_seg import ReasonSeg
from utils.data.datasets.refer import RefCoco
from utils.data.masks import decode_segmentation
from utils.toy.layouts.common import INDICES_PER_LAYOUT, LAYOUTS, SEED_OF_SPLIT, SceneSource
from utils.toy.layouts.polygons import coco_segmentation, pixel_outlines
from utils.toy.layouts.reason import choose
from utils.toy.layouts.semantic import RENAMED
from utils.toy.scene import CLASSES, draw_scene
from utils.toy.world import WorldConfig, main, make_world, scene_key

SOURCE = SceneSource(seed=3, num_train=4, num_val=2)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    out = tmp_path_factory.mktemp("toy") / "world"
    assert main(["--out", str(out), "--seed", "3", "--num_images", "4", "--num_val", "2"]) == 0
    return out


def fingerprint(folder):
    return {
        str(path.relative_to(folder)): sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def expected_label(name, label):
    """Class ids of a scene's label in a data set's list, looked up by name."""
    official = load_class_list(name).official
    ids = []
    for toy_name in CLASSES:
        class_name = RENAMED[name].get(toy_name, toy_name)
        ids.append(IGNORE if class_name is None else official.index(class_name))
    return np.asarray(ids)[label]


def test_the_ade20k_labels_are_the_scenes(world):
    names = ["", *load_class_list("ade20k")]
    for split, folder in (("train", "training"), ("val", "validation")):
        for drawn in SOURCE.scenes("ade20k", split):
            stem = f"ADE_{split}_{drawn.number + 1:08d}"
            values = np.asarray(Image.open(world / "ade20k" / "annotations" / folder / f"{stem}.png"))
            toy = np.vectorize(lambda value: CLASSES.index(names[value]))(values)
            np.testing.assert_array_equal(toy, drawn.scene.label)
            image = np.asarray(Image.open(world / "ade20k" / "images" / folder / f"{stem}.jpg"))
            assert np.abs(image.astype(int) - drawn.scene.image).mean() < 4


@pytest.mark.parametrize(
    ("dataset", "layout"), [(CocoStuff, "coco"), (Cityscapes, "cityscapes")], ids=["cocostuff", "cityscapes"]
)
def test_the_readers_see_the_classes_that_were_drawn(world, dataset, layout):
    def has_road(scene):
        return "road" in scene.present

    fits = has_road if layout == "cityscapes" else None
    for split in ("train", "val"):
        data = dataset(world, split)
        drawn = list(SOURCE.scenes(layout, split, fits))
        assert len(data) == len(drawn)
        for index, item in enumerate(drawn):
            expected = expected_label(data.name, item.scene.label)
            np.testing.assert_array_equal(data[index].label, expected)


def test_coco_annotations_decode_to_the_things_drawn(world):
    coco = COCO(world / "refer_seg" / "refcoco" / "instances.json")
    forms = set()
    for drawn, image_id in zip(SOURCE.scenes("refer", "train"), sorted(coco.imgs), strict=False):
        annotations = coco.loadAnns(coco.getAnnIds(imgIds=image_id))
        for annotation, thing in zip(annotations, drawn.scene.things, strict=True):
            np.testing.assert_array_equal(coco.annToMask(annotation), thing.mask)
            assert annotation["area"] == thing.mask.sum()
            box = coco_mask.toBbox(coco.annToRLE(annotation))
            np.testing.assert_array_equal(box, annotation["bbox"])
            forms.add(type(annotation["segmentation"]))
    assert forms == {list, dict}


def test_references_are_a_pickle_of_the_refer_toolkit(world):
    with (world / "refer_seg" / "refcoco" / "refs(unc).p").open("rb") as file:
        refs = pickle.load(file)
    keys = {"ref_id", "ann_id", "category_id", "image_id", "file_name", "split", "sent_ids", "sentences"}
    assert all(set(ref) == keys for ref in refs)
    assert {ref["split"] for ref in refs} == {"train", "val", "testA", "testB"}
    assert len({number for ref in refs for number in ref["sent_ids"]}) == sum(
        len(r["sentences"]) for r in refs
    )
    coco = json.loads((world / "refer_seg" / "refcoco" / "instances.json").read_text())
    names = {category["id"]: category["name"] for category in coco["categories"]}
    assert {names[ref["category_id"]] for ref in refs if ref["split"] == "testA"} == {"person"}
    assert "person" not in {names[ref["category_id"]] for ref in refs if ref["split"] == "testB"}


@pytest.mark.parametrize("dataset", [RefCoco, GRefCoco])
def test_referring_readers_find_a_mask_for_every_target(world, dataset):
    for split in ("train", "val", "testA", "testB"):
        data = dataset(world, split)
        assert data.dropped == []
        for sample in islice(data, 3):
            for mask, no_target in zip(sample.masks, sample.no_target, strict=True):
                assert mask.any() != no_target
    if dataset is GRefCoco:
        assert any(any(sample.no_target) for sample in dataset(world, "val"))


def test_reason_polygons_give_the_target_back(world):
    for split in ("train", "val"):
        data = ReasonSeg(world, split)
        for drawn, sample in zip(SOURCE.scenes("reason", split), data, strict=True):
            asked = choose(drawn)
            assert sample.question == asked[0].question
            assert sample.is_sentence == asked[0].is_sentence
            wrong = (sample.mask.astype(bool) != asked[0].mask) & ~sample.ignore
            lost = asked[0].mask & sample.ignore
            assert (wrong | lost).mean() < 1e-4  # polygons that touch at a corner can claim a pixel too many


def test_dialogues_are_about_images_of_their_split(world):
    for split, folder in (("train", "train2017"), ("val", "val2017")):
        data = LlavaInstruct(world, split)
        assert data.dropped == []
        assert all(data.path_of(dialogue).parent == world / "coco" / folder for dialogue in data.dialogues)
        assert any(len(dialogue.texts) > 4 for dialogue in data.dialogues)
    assert all(len(data[index].answer.split()) <= 2 for index in range(len(data)))


def test_all_questions_about_a_training_image_are_asked_once_in_dialogues_of_six(world):
    asked: dict[str, list[list[str]]] = {}
    for entry in json.loads((world / "llava_dataset/llava_instruct_150k.json").read_text()):
        if not entry["id"].endswith("_described"):
            turns = [turn["value"].removeprefix("<image>\n") for turn in entry["conversations"][::2]]
            asked.setdefault(entry["image"], []).append(turns)
    for dialogues in asked.values():
        assert [len(turns) for turns in dialogues[:-1]] == [6] * (len(dialogues) - 1)
        questions = [question for turns in dialogues for question in turns]
        assert len(questions) == len(set(questions)) > 6


@pytest.mark.parametrize("form", ["polygons", "counts", "compressed"])
def test_every_form_of_a_segmentation_decodes_to_the_mask(form):
    for index in range(3):
        for thing in draw_scene(2, index).things:
            height, width = thing.mask.shape
            decoded = decode_segmentation(coco_segmentation(thing.mask, form), height, width)
            np.testing.assert_array_equal(decoded, thing.mask)


def test_an_outline_turns_only_at_corners():
    mask = np.zeros((4, 5), bool)
    mask[1:3, 1:4] = True
    (outline,) = pixel_outlines(mask)
    points = sorted(zip(outline[::2], outline[1::2], strict=True))
    assert points == [(1, 1), (1, 3), (4, 1), (4, 3)]


def test_no_scene_is_drawn_twice():
    numbers = (0, 1, INDICES_PER_LAYOUT - 1)
    keys = [scene_key(7, split, layout, k) for split in SEED_OF_SPLIT for layout in LAYOUTS for k in numbers]
    assert len(set(keys)) == len(keys)
    with pytest.raises(ValueError, match="k must be in"):
        scene_key(7, "train", "coco", INDICES_PER_LAYOUT)


def test_the_same_parameters_give_the_same_bytes(world, tmp_path):
    assert make_world(WorldConfig(out=str(tmp_path / "again"), seed=3, num_images=4, num_val=2))
    assert fingerprint(tmp_path / "again") == fingerprint(world)


def test_a_complete_world_is_kept_and_another_is_not_overwritten(world, tmp_path, capsys):
    before = fingerprint(world)
    assert main(["--out", str(world), "--seed", "3", "--num_images", "4", "--num_val", "2"]) == 0
    assert "kept" in capsys.readouterr().out
    assert main(["--out", str(world), "--seed", "4", "--num_images", "4"]) == 2
    assert "holds another world" in capsys.readouterr().err
    assert fingerprint(world) == before
    (tmp_path / "notes.txt").write_text("mine")
    assert main(["--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_world_that_fails_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(root, source):
        raise OSError("disk full")

    monkeypatch.setattr("utils.toy.world.WRITERS", {"ade20k": fail})
    assert main(["--out", str(tmp_path / "world"), "--num_images", "1"]) == 2
    assert list(tmp_path.iterdir()) == []


def test_bad_flags_and_numbers_are_refused_in_one_line(tmp_path, capsys):
    assert main(["--out", str(tmp_path / "w"), "--colour", "red"]) == 2
    assert main(["--out", str(tmp_path / "w"), "--num_images", "0"]) == 2
    assert main(["--out", str(tmp_path / "w"), "--seed", "1000000"]) == 2
    assert capsys.readouterr().err.count("\n") == 3
