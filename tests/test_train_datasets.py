"""train_ds.py takes two steps on every data set that can be trained on, and on own data of every kind."""

import math

import pytest

import train_ds
from tests.commands import BASE, SMALL_RUN, losses_of
from utils.data.dataset_flags import SOURCE_RATES
from utils.data.registry import DATASETS
from utils.toy.world import WorldConfig, make_world

# Data sets that differ from another one in the names of their files alone.
ALIKE = {"R-refcoco+", "R-refcocog", "fprefcoco+", "fprefcocog"}
ENTRIES = [
    *(name for name, dataset in DATASETS.items() if dataset.train_split is not None and name not in ALIKE),
    "refcocog|google",
    "own_sem:WORLD/own/labels",
    "own_coco:WORLD/own/things|train",
    "own_coco:WORLD/own/things|train|exhaustive=true",
    "own_jsonl:WORLD/own/questions",
]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    out = tmp_path_factory.mktemp("every") / "dataset"
    make_world(WorldConfig(out=str(out), seed=3, num_images=2, num_val=1))
    return out


@pytest.mark.parametrize("entry", ENTRIES)
def test_two_steps(entry, world, at_work, tmp_path):
    source = DATASETS[entry.split("|")[0]].source if ":" not in entry else ""
    data = [f"--dataset={source}", f"--{source}_data={entry}"] if source else ["--dataset", entry]
    argv = [
        *(word.replace("WORLD", str(world)) for word in data),
        *BASE,
        *(flag for flag in SMALL_RUN if "refer_seg_data" not in flag),
        *("--epochs=1", "--no_eval", "--precision=fp32", "--batch_size=2", "--num_all_classes=8"),
        *(f"--dataset_dir={world}", f"--log_base_dir={tmp_path}", "--exp_name=run"),
    ]
    assert train_ds.main(argv) == 0
    steps = losses_of(tmp_path / "run")
    assert len(steps) == 2
    assert all(math.isfinite(value) for step in steps for value in step.values())


def test_every_source_has_a_data_set_to_train_on():
    assert {dataset.source for dataset in DATASETS.values() if dataset.train_split} == set(SOURCE_RATES)
