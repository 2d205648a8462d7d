"""The layouts of data with absent targets: what the readers return is true of the scenes drawn."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest

from model.text.format import SequenceFormat
from utils.data.datasets.lisa_plus import PARTS, LisaPlus
from utils.data.datasets.llava_mix import LlavaMix
from utils.data.datasets.muse import Muse
from utils.data.datasets.refer import RefCoco, RefCocoG, RefCocoPlus
from utils.data.datasets.refzom import RefZom
from utils.data.images import read_image
from utils.data.pickles import load_plain_pickle
from utils.data.registry import DATASETS
from utils.data.types import Recipe
from utils.toy.layouts.common import SceneSource
from utils.toy.layouts.lisa_plus import has_things, write_lisa_plus
from utils.toy.layouts.llava_mix import FOLDERS, write_llava_mix
from utils.toy.layouts.muse import SCENES, write_muse
from utils.toy.layouts.refzom import write_refzom
from utils.toy.world import WorldConfig, make_world

RECIPE = Recipe(format=SequenceFormat.named("paper"))
SOURCE = SceneSource(seed=5, num_train=2, num_val=2)
LAYOUTS = "refer,refcoco+,refcocog,refer_absent"
LISA = SceneSource(seed=5, num_train=4, num_val=2)  # every third has its masks in COCO's file
MIX = SceneSource(seed=5, num_train=8, num_val=1)
BASES = {"refcoco": RefCoco, "refcoco+": RefCocoPlus, "refcocog": RefCocoG}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    out = tmp_path_factory.mktemp("toy") / "world"
    make_world(WorldConfig(out=str(out), seed=5, num_images=2, num_val=2, layouts=LAYOUTS))
    return out


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("prefix", ["R-", "fp"])
def test_negative_sentences_are_added_to_the_references_of_the_data_set_that_they_extend(world, base, prefix):
    num_absent = 0
    for split in ("train", "val"):
        plain, data = BASES[base](world, split), DATASETS[prefix + base](world, split)
        assert data.dropped == []
        assert data.notes == {}
        assert len(data) == len(plain)
        for ours, theirs in zip(data, plain, strict=True):
            assert ours.source == theirs.source
            present = [not absent for absent in ours.no_target]
            told = [text for text, found in zip(ours.expressions, present, strict=True) if found]
            assert told == list(theirs.expressions)
            np.testing.assert_array_equal(ours.masks[present], theirs.masks)
            assert not ours.masks[~np.array(present)].any()
            assert not set(theirs.expressions) & (set(ours.expressions) - set(told))
            num_absent += len(present) - sum(present)
    assert num_absent


def test_the_mixture_has_dialogues_about_images_of_every_folder(tmp_path):
    write_llava_mix(tmp_path, MIX)
    data = LlavaMix(tmp_path, "train")
    assert data.dropped == []
    assert data.coverage.left_out == {"without an image": 3}
    assert len(data.dialogues) == MIX.num_train
    folders = {data.path_of(dialogue).parent.relative_to(tmp_path).as_posix() for dialogue in data.dialogues}
    assert folders == {"coco/train2017", *FOLDERS}
    drawn = [*islice(MIX.scenes("coco", "train"), 1), *islice(MIX.scenes("llava_mix", "train"), 7)]
    for dialogue, item in zip(data.dialogues, drawn, strict=True):
        assert np.abs(read_image(data.path_of(dialogue)).astype(int) - item.scene.image).mean() < 4
        assert all(text.endswith("single word or phrase.") for text in dialogue.texts[::2])


def test_references_have_no_target_one_or_many_as_their_source_says(tmp_path):
    write_refzom(tmp_path, SOURCE)
    refs = load_plain_pickle(tmp_path / "refer_seg/refzom/Ref_ZOM.p")
    assert {ref["source"] for ref in refs} == {"zero", "one", "many"}
    assert any(ref["ann_id"] for ref in refs if ref["source"] == "zero")
    for split, folder in (("train", "train2014"), ("test", "val2014")):
        data = RefZom(tmp_path, split)
        assert data.dropped == []
        assert {item.path.parent.name for item in data.items} == {folder}
        for sample, item in zip(data, SOURCE.scenes("refzom", split, lambda s: bool(s.things)), strict=True):
            for mask, nothing, number in zip(sample.masks, sample.no_target, sample.references, strict=True):
                ids, kind = refs[number]["ann_id"], refs[number]["source"]
                count = {"zero": 0, "one": 1}[kind] if kind != "many" else len(ids)
                parts = [
                    thing.mask for thing in item.scene.things if (thing.mask & ~mask.astype(bool)).sum() == 0
                ]
                assert nothing == (count == 0) == (not mask.any())
                if count:
                    assert len(parts) >= count
                    np.testing.assert_array_equal(mask.astype(bool), np.any(parts, axis=0))


def test_questions_have_the_masks_of_several_things(tmp_path):
    write_muse(tmp_path, SceneSource(seed=5, num_train=3, num_val=2))
    for split in ("train", "val", "test_less", "test_many"):
        data = Muse(tmp_path, split)
        assert (data.dropped, data.notes) == ([], {})
        scenes = SOURCE.scenes("muse", SCENES[split], lambda scene: len(scene.things) >= 2)
        for sample, item in zip(data, scenes, strict=False):
            shapes = {thing.mask.tobytes() for thing in item.scene.things}
            for masks in sample.masks:
                assert {mask.astype(bool).tobytes() for mask in masks} <= shapes
            assert max(len(masks) for masks in sample.masks) >= 2
    data = Muse(tmp_path, "train")
    assert {item.path.parent.name for item in data.items} == {"train2014", "train2017"}
    for index in range(len(data)):
        for conversation in data.sample_of(index, np.random.default_rng(0), RECIPE).conversations:
            assert conversation.answers[0].startswith("there is ") == (index % 2 == 0)


@pytest.fixture(scope="module")
def lisa_plus(tmp_path_factory):
    root = tmp_path_factory.mktemp("lisa_plus")
    write_lisa_plus(root, LISA)
    return root


@pytest.mark.parametrize("part", PARTS)
def test_texts_refer_to_the_masks_of_the_things_that_they_name(lisa_plus, part):
    data = LisaPlus.open(lisa_plus, (part,), training=True)
    assert (data.dropped, data.notes, len(data)) == ([], {}, LISA.num_train)
    for index, item in enumerate(LISA.scenes("lisa_plus", "train", has_things)):
        sample = data.sample_of(index, np.random.default_rng(0), RECIPE)
        assert np.abs(sample.image.astype(int) - item.scene.image).mean() < 4
        name_of = {thing.mask.tobytes(): thing.name for thing in item.scene.things}
        names = [name_of[mask.astype(bool).tobytes()] for mask in sample.masks]
        said = [text for answer in sample.conversations[0].answers for text in answer.split("[SEG]")[:-1]]
        assert all(text.rstrip().endswith(name) for text, name in zip(said, names, strict=True))
        if part != "instance":  # of which a question may be about some
            assert set(names) == {thing.name for thing in item.scene.things}


def test_instances_are_evaluated_on_scenes_of_their_own(lisa_plus):
    data = LisaPlus.open(lisa_plus, ("instance",))
    assert (data.dropped, data.notes) == ([], {})
    for sample, item in zip(data, LISA.scenes("lisa_plus", "val", has_things), strict=True):
        shapes = {thing.mask.tobytes() for thing in item.scene.things}
        assert {mask.astype(bool).tobytes() for mask in sample.masks[0]} <= shapes
        assert len(sample.masks[0]) >= 2


def test_the_layouts_are_the_same_without_the_data_set_that_they_extend(world, tmp_path):
    out = tmp_path / "world"
    make_world(WorldConfig(out=str(out), seed=5, num_images=2, num_val=2, layouts="refer_absent"))
    for path in out.rglob("*.*"):
        if path.is_file() and path.name != "world.json":
            assert path.read_bytes() == (world / path.relative_to(out)).read_bytes()
