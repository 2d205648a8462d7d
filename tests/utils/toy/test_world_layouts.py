"""The layouts beyond the demo's: what the readers return equals the scenes drawn, pixel by pixel."""

import json
from itertools import islice

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from model.text.format import SequenceFormat
from utils.common.label_values import IGNORE
from utils.config.training import TrainConfig
from utils.data.datasets.mapillary import Mapillary
from utils.data.datasets.openimages import OpenImages
from utils.data.datasets.paco_lvis import PacoLvis
from utils.data.datasets.pascal_context import Pc59, Pc459
from utils.data.datasets.pascal_part import PascalPart
from utils.data.datasets.pascal_voc import Pas20
from utils.data.datasets.reason_seg import ReasonSeg
from utils.data.datasets.refer import RefClef, RefCocoG, RefCocoPlus
from utils.data.mixture import build_train_mixture
from utils.data.registry import DATASETS, build_val_dataset
from utils.data.tools.openimages_index import build_index
from utils.data.types import Recipe
from utils.toy.layouts import mapillary, openimages, parts, voc
from utils.toy.layouts.common import SceneSource
from utils.toy.layouts.reason import choose
from utils.toy.layouts.refer_more import PLACE_WORDS
from utils.toy.layouts.semantic import RENAMED
from utils.toy.scene import CLASSES
from utils.toy.world import SECOND_CHOICE, WorldConfig, main, make_world

SOURCE = SceneSource(seed=5, num_train=3, num_val=2)
FORMAT = SequenceFormat.named("paper")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    out = tmp_path_factory.mktemp("toy") / "world"
    make_world(WorldConfig(out=str(out), seed=5, num_images=3, num_val=2))
    return out


@pytest.fixture(scope="module")
def second_choice(tmp_path_factory):
    out = tmp_path_factory.mktemp("toy") / "second"
    layouts = ",".join(SECOND_CHOICE)
    make_world(WorldConfig(out=str(out), seed=5, num_images=3, num_val=2, layouts=layouts))
    return out


def by_name(names, toy_names, label):
    """Class ids of a scene's label, where class `toy_names[k]` (None: ignored) of `names` is toy class k."""
    ids = [IGNORE if name is None else names.index(name) for name in toy_names]
    return np.asarray(ids, dtype=np.uint16)[label]


def mapillary_names(release):
    readable = {toy: text.lower() for _, text, toys in mapillary.labels_of(release) for toy in toys}
    return [None if readable[name] == "unlabeled" else readable[name] for name in CLASSES]


@pytest.mark.parametrize("split", ["train", "val"])
def test_mapillary_takes_the_classes_of_its_configuration_file(world, second_choice, split):
    for root, release, num_classes in ((world, "v2.0", 18), (second_choice, "v1.2", 19)):
        data = Mapillary(root, split)
        assert len(data.classes) == num_classes
        assert "unlabeled" not in data.classes
        drawn = list(SOURCE.scenes("mapillary", split))
        assert len(data) == len(drawn)
        for sample, item in zip(data, drawn, strict=True):
            expected = by_name(data.classes, mapillary_names(release), item.scene.label)
            np.testing.assert_array_equal(sample.label, expected)
            assert np.abs(sample.image.astype(int) - item.scene.image).mean() < 4


@pytest.mark.parametrize(
    ("reader", "classes"), [(Pc59, "pascal_context_59"), (Pc459, "pascal_context_459")], ids=["pc59", "pc459"]
)
def test_pascal_context_labels_are_the_scenes(world, second_choice, reader, classes):
    for root in (world, second_choice):
        data = reader(root, "val")
        for sample, item in zip(data, SOURCE.scenes("pascal_context", "val"), strict=True):
            toy_names = [RENAMED[classes].get(name, name) for name in CLASSES]
            expected = by_name(data.classes.official, toy_names, item.scene.label)
            np.testing.assert_array_equal(sample.label, expected)
    if reader is Pc459:
        assert data.pairs[0][1].suffix == ".tif"
        assert (data[0].label[data[0].label != IGNORE] > 255).any()


def test_voc_labels_are_the_scenes_but_for_background_and_borders(world):
    data = Pas20(world, "val")
    for sample, item in zip(data, SOURCE.scenes("pascal_voc", "val", voc.has_voc_thing), strict=True):
        expected = by_name(
            data.classes.official, [RENAMED["pascal_voc"][n] for n in CLASSES], item.scene.label
        )
        border = np.asarray(Image.open(data.pairs[item.number][1])) == voc.BORDER
        assert 0 < border.mean() < 0.2
        np.testing.assert_array_equal(sample.label, np.where(border, IGNORE, expected))


def test_part_masks_are_the_regions_drawn(world):
    """The class index of a reader is the position of the category in the file."""
    for reader, annotate, categories, layout, fits in (
        (PascalPart, parts.annotate_pascal_part, parts.pascal_categories(), "pascal_part", parts.has_parts),
        (PacoLvis, parts.annotate_paco, parts.paco_categories(), "coco", None),
    ):
        data = reader(world, "train")
        found = {item.path.name: index for index, item in enumerate(data.items)}
        for drawn in SOURCE.scenes(layout, "train", fits):
            annotated = annotate(drawn)
            expected = {}
            for name, mask in annotated.regions:
                if name not in annotated.partly:
                    class_id = categories.index(name)
                    expected[class_id] = expected.get(class_id, False) | mask
            name = f"2009_{drawn.number:06d}.jpg" if reader is PascalPart else f"{drawn.number + 1:012d}.jpg"
            if not expected:
                assert name not in found
                continue
            _, masks = data.read(found[name])
            assert masks.keys() == expected.keys()
            for class_id, mask in masks.items():
                np.testing.assert_array_equal(mask, expected[class_id])
            absent = [categories.index(name) for name in annotated.absent]
            assert data.absent_classes(found[name]) == sorted(absent)


def test_part_annotations_equal_those_of_pycocotools(world):
    coco = COCO(world / "vlpart" / "paco" / "annotations" / "paco_lvis_v1_train.json")
    data = PacoLvis(world, "train")
    forms = set()
    for index, item in enumerate(data.items):
        _, masks = data.read(index)
        for class_id, mask in masks.items():
            category = class_id + 1
            image_id = int(item.path.stem)
            annotations = coco.loadAnns(coco.getAnnIds(imgIds=[image_id], catIds=[category]))
            forms |= {type(a["segmentation"]).__name__ for a in annotations}
            np.testing.assert_array_equal(mask, np.max([coco.annToMask(a) for a in annotations], axis=0))
    assert forms == {"list", "dict"}


def test_open_images_masks_are_the_things_drawn_whatever_their_size_on_disk(world):
    data = OpenImages(world, "train")
    found = {item.image_id: index for index, item in enumerate(data.items)}
    sizes = set()
    for drawn in SOURCE.scenes("openimage", "train", openimages.fits):
        annotated = openimages.annotate(drawn)
        expected = {}
        for name, mask in annotated.regions:
            class_id = data.classes.index(openimages.LABELS[name][1].lower())
            expected[class_id] = expected.get(class_id, False) | mask
        image, masks = data.read(found[annotated.image_id])
        assert image.shape[:2] == drawn.scene.label.shape
        assert masks.keys() == expected.keys()
        for class_id, mask in masks.items():
            np.testing.assert_array_equal(mask, expected[class_id])
        absent = {openimages.LABELS[name][1].lower() for name in annotated.absent}
        known = [data.classes[class_id] for class_id in data.absent_classes(found[annotated.image_id])]
        assert set(known) == absent & set(data.classes)
        sizes.add(annotated.mask_scale)
    assert sizes == {1, 2}


def test_the_open_images_command_builds_the_index_from_the_official_files(world):
    root = world / "OpenImageV6"
    index, negatives = build_index(
        root / "class-descriptions-boxable.csv",
        root / "train-annotations-object-segmentation.csv",
        root / "train-annotations-human-imagelabels-boxable.csv",
        show_progress=False,
    )
    assert index == json.loads((root / "train_mask.json").read_text())
    assert negatives == json.loads((root / "train_negatives.json").read_text())
    assert "tortoise" not in index["categories"]


@pytest.mark.parametrize(
    ("reader", "split_by", "splits"),
    [
        (RefClef, "unc", ("train", "val", "testA", "testB", "testC")),
        (RefCocoPlus, "unc", ("train", "val", "testA", "testB")),
        (RefCocoG, "umd", ("train", "val", "test")),
        (RefCocoG, "google", ("train", "val")),
    ],
)
def test_referring_masks_are_the_things_drawn(world, reader, split_by, splits):
    for split in splits:
        data = reader(world, split, split_by)
        assert data.dropped == []
        drawn = {}
        for part in (split, "test") if (split_by, split) == ("google", "train") else (split,):
            kinds = {"testA": True, "testB": False}.get(part)

            def fits(scene, kinds=kinds):
                return any(kinds is None or (thing.name == "person") == kinds for thing in scene.things)

            for item in SOURCE.scenes(data.name, part, fits):
                drawn[item.scene.label.tobytes()] = item.scene
        assert len(data) <= len(drawn)
        shapes = [{thing.mask.tobytes() for thing in scene.things} for scene in drawn.values()]
        for sample in data:
            masks = {mask.astype(bool).tobytes() for mask in sample.masks}
            assert any(masks <= things for things in shapes), "a mask that nobody drew"
            assert not any(sample.no_target)
            if reader is RefCocoPlus:
                assert not any(PLACE_WORDS.search(text) for text in sample.expressions)


def test_reason_seg_has_a_test_split(world):
    for drawn, sample in zip(SOURCE.scenes("reason", "test"), ReasonSeg(world, "test"), strict=True):
        asked = choose(drawn)
        assert sample.question == asked[0].question
        assert ((sample.mask.astype(bool) != asked[0].mask) & ~sample.ignore).mean() < 1e-4


def test_every_data_set_reads_its_second_choice_layout(second_choice):
    for entry in ("ade20k", "cocostuff", "mapillary", "pc459", "llava_instruct_150k"):
        data = build_val_dataset(entry, second_choice)
        assert len(data) >= 2
        assert data.dropped == []
        assert data[0].image.shape[2] == 3


TRAINABLE = [name for name, data in DATASETS.items() if data.train_split and not name.startswith("own_")]


@pytest.mark.parametrize("name", TRAINABLE)
def test_a_mixture_draws_from_every_data_set_that_trains(world, name):
    source = DATASETS[name].source
    settings = TrainConfig(
        version="any",
        vision_pretrained="any",
        dataset_dir=str(world),
        dataset=source,
        **{f"{source}_data": name},
    )
    mixture = build_train_mixture(settings, FORMAT)
    samples = [mixture[index] for index in range(6)]
    assert {sample.dataset.split("|")[0] for sample in samples} == {name}  # perhaps with its part
    assert all(sample.skipped == () for sample in samples)
    if source != "vqa":
        assert all(mask.any() for sample in samples for mask in sample.masks)


def test_no_class_is_denied_that_was_not_ruled_out(world):
    """[NEG] only for classes that are not in the scene and, where labels are not exhaustive, verified absent."""
    recipe = Recipe(format=FORMAT)
    for name in ("openimage", "paco_lvis", "pascal_part"):
        data = DATASETS[name](world, "train")
        denied_anything = False
        for seed in range(40):
            index = int(np.random.default_rng(seed).integers(len(data)))  # as draw does
            sample = data.draw(np.random.default_rng(seed), recipe)
            assert sample.source == str(data.source_path(index))
            (answer,) = sample.conversations[0].answers
            choices = FORMAT.parse(answer)
            denied = {text for text, present in choices if not present}
            looked_for = {data.classes[k] for k in data.absent_classes(index)}
            assert denied <= looked_for
            assert not denied & {data.classes[k] for k in data.read(index)[1]}
            denied_anything |= bool(denied)
        assert denied_anything == (name != "pascal_part")


@pytest.mark.parametrize("name", ["ade20k", "cocostuff", "cityscapes", "mapillary"])
def test_where_all_is_labelled_no_class_is_denied_that_has_a_pixel(world, name):
    data = DATASETS[name](world, "train")
    recipe = Recipe(format=FORMAT, num_all_classes=200)
    for seed in range(10):
        index = int(np.random.default_rng(seed).integers(len(data)))
        sample = data.draw(np.random.default_rng(seed), recipe)
        choices = FORMAT.parse(sample.conversations[0].answers[0])
        found = {data.classes[k] for k in np.unique(data[index].label) if k != IGNORE}
        assert sample.source == data[index].source
        assert {text for text, present in choices if present} == found
        assert not {text for text, present in choices if not present} & found


def test_data_sets_without_training_or_without_evaluation_say_so(world):
    for name in ("pc59", "pc459", "pas20"):
        with pytest.raises(ValueError, match=f"{name} is for evaluation only"):
            DATASETS[name].open(world, (), training=True)
    for name in ("openimage", "pascal_part", "paco_lvis"):
        with pytest.raises(ValueError, match=f"{name} is for training only"):
            build_val_dataset(name, world)


def test_only_the_layouts_named_are_written(tmp_path, capsys):
    out = tmp_path / "world"
    flags = ["--out", str(out), "--num_images", "1", "--num_val", "1"]
    assert main([*flags, "--layouts", "ade20k, pascal_voc"]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["VOCdevkit", "ade20k", "world.json"]
    assert json.loads((out / "world.json").read_text())["layouts"] == ["ade20k", "pascal_voc"]
    assert main([*flags, "--layouts", "pascal_voc"]) == 0  # all there
    assert main([*flags, "--layouts", "ade20k,refer"]) == 2
    assert main([*flags, "--layouts", "ade21k"]) == 2
    assert "--layouts: unknown layout 'ade21k'; known: ade20k, coco" in capsys.readouterr().err


def test_a_layout_is_the_same_whatever_is_written_beside_it(world, tmp_path):
    out = tmp_path / "world"
    make_world(WorldConfig(out=str(out), seed=5, num_images=3, num_val=2, layouts="refclef,openimage"))
    for path in islice(sorted(path for path in out.rglob("*.*") if path.name != "world.json"), 60):
        assert path.read_bytes() == (world / path.relative_to(out)).read_bytes()
