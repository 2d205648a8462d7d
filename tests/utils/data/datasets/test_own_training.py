"""Own data of the toy world through the training mixture: every mask is what the generator drew."""

from dataclasses import replace

import numpy as np
import pytest

from model.text.format import SequenceFormat
from utils.common.label_values import IGNORE, NOTHING
from utils.config.training import TrainConfig
from utils.data.mixture import build_train_mixture
from utils.data.registry import build_val_dataset
from utils.toy.layouts.common import SceneSource
from utils.toy.layouts.own import write_own
from utils.toy.scene import CLASSES, THINGS

SOURCE = SceneSource(seed=3, num_train=5, num_val=2)
FORMAT = SequenceFormat.named("paper")
CONFIG = TrainConfig(version="any", dataset="own_sem:own/labels", num_all_classes=30)
NUM_DRAWS = 20


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    write_own(folder, SOURCE)
    return folder


@pytest.fixture(scope="module")
def scenes():
    return {
        split: {drawn.number: drawn.scene for drawn in SOURCE.scenes("own", split)}
        for split in ("train", "val")
    }


def mixture(root, entry, **settings):
    return build_train_mixture(replace(CONFIG, dataset_dir=str(root), dataset=entry, **settings), FORMAT)


def scene_of(sample, scenes):
    """Images are called SPLIT_NUMBER.jpg or NUMBER.jpg."""
    return scenes["train"][int(sample.source.removesuffix(".jpg")[-4:])]


def choices(sample):
    (answer,) = sample.conversations[0].answers
    return FORMAT.parse(answer)


@pytest.mark.parametrize(
    ("entry", "names"), [("own_sem:own/labels", CLASSES), ("own_coco:own/things|exhaustive=true", THINGS)]
)
def test_masks_of_complex_queries_are_what_was_drawn(root, scenes, entry, names):
    stream, denied = mixture(root, entry), 0
    for index in range(NUM_DRAWS):
        sample = stream[index]
        scene = scene_of(sample, scenes)
        present = {name for name in scene.present if name in names}
        named = [name for name, there in choices(sample) if there]
        assert set(named) == present
        assert len(named) == len(sample.masks)
        for name, mask in zip(named, sample.masks, strict=True):
            assert np.array_equal(mask, scene.mask_of(name))
        absent = {name for name, there in choices(sample) if not there}
        assert absent <= set(names) - present
        denied += len(absent)
    assert denied


@pytest.mark.parametrize("entry", ["own_sem:own/labels|exhaustive=false", "own_coco:own/things"])
def test_nothing_is_taught_as_absent_that_annotators_did_not_rule_out(root, entry):
    stream = mixture(root, entry)
    assert all(there for index in range(NUM_DRAWS) for _, there in choices(stream[index]))


def test_masks_of_conversations_are_what_was_drawn(root, scenes):
    stream, num_masks, forms = mixture(root, "own_jsonl:own/questions"), 0, set()
    for index in range(NUM_DRAWS):
        sample = stream[index]
        scene = scene_of(sample, scenes)
        drawn = [thing.mask for thing in scene.things] + [scene.mask_of(name) for name in scene.present]
        for mask in sample.masks:
            assert any(np.array_equal(mask, known) for known in drawn)
        question, answer = (str(turn) for turn in sample.conversations[0].turns[:2])
        if question.startswith("Please segment the "):
            name = question.removeprefix("Please segment the ").removesuffix(".")
            assert np.array_equal(sample.masks[0], scene.mask_of(name))
        num_masks += len(sample.masks)
        forms.add(answer)
    assert num_masks >= NUM_DRAWS / 2
    assert forms == {"It is [SEG].", "It is not there [NEG].", "Sure, [SEG]."}


def test_every_question_of_a_file_has_the_mask_of_its_thing(root, scenes):
    dataset = build_val_dataset("own_jsonl:own/questions", root)
    for sample in (dataset[index] for index in range(len(dataset))):
        scene = scenes["val"][int(sample.source.removesuffix(".jpg")[-4:])]
        known = [thing.mask for thing in scene.things]
        assert sample.no_target[0] != any(np.array_equal(sample.masks[0], mask) for mask in known)


def test_evaluation_labels_are_what_was_drawn(root, scenes):
    labels = build_val_dataset("own_sem:own/labels|val", root)
    things = build_val_dataset("own_coco:own/things|val|exhaustive=true", root)
    unknown = build_val_dataset("own_coco:own/things|val", root)
    assert len(labels) == len(things) == len(unknown) == SOURCE.num_val
    for number, scene in scenes["val"].items():
        assert np.array_equal(labels[number].label, scene.label)
        ids = np.array([THINGS.index(name) if name in THINGS else NOTHING for name in CLASSES])
        assert np.array_equal(things[number].label, ids[scene.label])
        assert np.array_equal(unknown[number].label, np.where(ids == NOTHING, IGNORE, ids)[scene.label])


def test_own_data_is_mixed_with_other_data_by_rate(root):
    stream = mixture(root, "own_sem:own/labels||own_coco:own/things", sample_rates="1,3")
    counts = dict.fromkeys(("own_sem:own/labels", "own_coco:own/things"), 0)
    for index in range(200):
        rng = np.random.default_rng((stream.seed, index))
        counts[stream.sources[rng.choice(2, p=stream.rates)].name] += 1
    assert 30 <= counts["own_sem:own/labels"] <= 70
    assert {stream[index].dataset for index in range(8)} == counts.keys()
