"""What the checker says of good, bad and missing data, and its exit codes."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.text.format import SequenceFormat
from tests.commands import REPOSITORY
from tests.utils.data.layouts import blocks, box_polygon, reference, write_ade20k, write_refer
from utils.data.registry import DATASETS, Entry
from utils.data.tools import check
from utils.data.tools.survey import read_training_items
from utils.data.types import Recipe

TOY_MODEL = str(REPOSITORY / "assets" / "toy" / "llava")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_ade20k(tmp_path, [blocks([k, k + 1]) for k in range(1, 7)])
    refs = [reference(0, 1, 1, "train", "a", "b"), reference(1, 2, 1, "train", "c")]
    polygons = {1: [box_polygon(3, 3, 9, 9)], 2: [box_polygon(1, 1, 5, 5)]}
    write_refer(tmp_path, "refcoco", refs, polygons, [1])
    return tmp_path


@pytest.fixture
def run(root: Path, capsys, monkeypatch):
    """The command on `root` in a terminal of 80 columns: exit code, and what it prints in one line of words."""
    monkeypatch.setenv("COLUMNS", "80")

    def run(*flags: str) -> tuple[int, str]:
        code = check.main([f"--dataset_dir={root}", *flags])
        printed = capsys.readouterr()
        assert all(len(line) <= 80 for line in printed.out.splitlines())
        return code, " ".join((printed.out + printed.err).split())

    return run


def test_a_row_says_what_is_there(run):
    code, printed = run("--sem_seg_data=ade20k", "--refer_seg_data=refcoco", "--num_samples=3")
    assert code == 0
    assert re.search(r"ade20k\|train ok 6 6 150 \d-\d - \d+", printed)
    assert re.search(r"refcoco\|train ok 1 3 - - - \d+", printed), "one image, three expressions"
    assert "tokens: not counted without --version, which names the tokenizer" in printed


def test_tokens_are_those_of_the_models_tokenizer_and_are_held_against_the_limit(run):
    flags = ("--sem_seg_data=ade20k", "--num_samples=20", f"--version={TOY_MODEL}")
    code, printed = run(*flags)
    median, high, most = map(int, re.search(r"\d-\d (\d+)/(\d+)/(\d+) ", printed).groups())
    assert code == 0
    assert 60 < median < high <= most < 1024
    assert "shortened" not in printed
    code, printed = run(*flags, f"--model_max_length={median}")
    assert code == 0
    shortened, replaced = map(
        int, re.search(r"of 20 samples, (\d+) are shortened and (\d+) replaced", printed).groups()
    )
    assert 5 <= shortened <= 10
    assert replaced == 0
    _, printed = run(*flags, "--model_max_length=40")  # the template alone is longer
    assert "0 are shortened and 20 replaced" in printed


def test_what_is_missing_fails_only_when_it_was_asked_for(run, root):
    code, printed = run("--num_samples=2")
    assert code == 0
    assert "refcoco|train ok" in printed
    assert re.search(r"cityscapes\S* missing", printed)
    assert f"cityscapes needs {root}/cityscapes".replace(" ", "") in printed.replace(
        " ", ""
    )  # wrapped anywhere
    code, printed = run("--sem_seg_data=ade20k||cityscapes", "--num_samples=2")
    assert code == 1
    assert "ade20k|train ok" in printed
    assert "cityscapes|train missing" in printed
    shutil.rmtree(root / "ade20k")
    shutil.rmtree(root / "refer_seg")
    assert run()[0] == 1, "nothing at all is found"


@pytest.mark.parametrize("flags", [("--all",), ("--num_samples=30",)])
def test_bad_files_are_named_once_each(run, root, flags):
    labels = sorted((root / "ade20k/annotations/training").iterdir())
    images = sorted((root / "ade20k/images/training").iterdir())
    labels[0].write_bytes(b"")
    content = images[1].read_bytes()
    images[1].write_bytes(content[: -len(content) // 3])
    Image.new("L", (5, 5)).save(labels[2])
    Image.new("L", (32, 24), 200).save(labels[3])
    (root / "ade20k/images/training/lonely.jpg").write_bytes(images[4].read_bytes())
    code, printed = run("--sem_seg_data=ade20k", *flags)
    assert code == 1
    joined = printed.replace(" ", "")  # paths are broken where a line ends
    for path, reason in (
        (labels[0], "cannotbedecoded(thefileisempty)"),
        (images[1], "truncated"),
        (labels[2], "labelis(5,5),itsimage(24,32)"),
        (labels[3], "labelvalues[200]arenotinade20k'sclasslist"),
        (root / "ade20k/images/training/lonely.jpg", "nolabellonely.png"),
    ):
        assert joined.count(f"-{path}:") == 1, path
        assert reason in joined
    assert "1 items are left out" in printed
    if "--all" in flags:
        assert "ade20k|train 4 bad 6 6 150" in printed
        assert "4 of 6 items read cannot be used (66.7%)" in printed


def test_few_bad_files_are_named_but_are_no_failure(run, root):
    write_ade20k(root, [blocks([k % 150 + 1]) for k in range(40)])
    sorted((root / "ade20k/annotations/training").iterdir())[7].write_bytes(b"")
    code, printed = run("--sem_seg_data=ade20k", "--all", "--num_samples=1", "--max_bad_fraction=0.05")
    assert code == 0
    assert "1 of 40 items read cannot be used (2.5%)" in printed
    assert run("--sem_seg_data=ade20k", "--all", "--num_samples=1")[0] == 1


def test_a_broken_index_is_told_apart_from_a_missing_one(run, root):
    (root / "refer_seg/refcoco/instances.json").write_text("{")
    code, printed = run("--refer_seg_data=refcoco")
    assert code == 1
    assert "refcoco|train broken" in printed
    assert "instances.json: not JSON" in printed


def test_evaluation_sets_are_read_too(run, root):
    write_ade20k(root, [blocks([k]) for k in range(1, 5)], "validation")
    sorted((root / "ade20k/annotations/validation").iterdir())[3].write_bytes(b"")
    code, printed = run("--val_dataset_list=ade20k|val")
    assert code == 1
    assert "ade20k|val 1 bad 4 4 150 1-3" in printed


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--sem_seg_data=ade21k",), "--sem_seg_data: unknown data set 'ade21k'"),
        (("--reason_seg_data=ReasonSeg|trian",), "ReasonSeg has no split 'trian'; known: train, val, test"),
        (("--refer_seg_data=refcoco|unc|x|y",), "write refcoco|SPLIT_BY|SPLIT"),
        (("--dataset=video",), "unknown source 'video'"),
        (("--num_samples=0",), "--num_samples must be > 0"),
        (("--val_dataset_list=openimage",), "openimage is for training only"),
        (("--al",), "unknown flag --al"),
        (("--version=./nowhere", "--sem_seg_data=ade20k"), "--version ./nowhere is not there"),
        (("--dataset_dir=./nowhere",), "--dataset_dir ./nowhere is not a folder"),
    ],
)
def test_mistakes_in_flags_end_with_2(run, flags, message):
    code, printed = run(*flags)
    assert code == 2
    assert message in printed
    assert printed.startswith("utils.data.tools.check: ")


def test_the_configuration_of_a_run_can_be_checked(run):
    code, printed = run(f"--config={REPOSITORY / 'configs' / 'lasagna_7b.yaml'}", "--version=")
    assert code == 1, "not all of its data is there"
    assert "cocostuff|train missing" in printed


@pytest.mark.parametrize("name", [name for name, dataset in DATASETS.items() if dataset.train_split])
def test_every_item_of_every_training_set_is_drawn(name, toy_world):
    dataset = Entry(name).open(toy_world, training=True)
    recipe = Recipe(format=SequenceFormat.named("paper"))
    problems = list(read_training_items(dataset, recipe))
    assert len(problems) == dataset.num_items >= dataset.num_images > 0
    assert not any(problems)
    assert dataset.num_annotations >= dataset.num_images
    sources = {
        dataset.sample_of(index, np.random.default_rng(0), recipe).source
        for index in range(dataset.num_items)
    }
    assert len(sources) == dataset.num_images


@pytest.mark.parametrize("name", [name for name, dataset in DATASETS.items() if dataset.train_split])
def test_a_draw_is_the_sample_of_the_item_that_its_first_number_chooses(name, toy_world):
    dataset = Entry(name).open(toy_world, training=True)
    recipe = Recipe(format=SequenceFormat.named("paper"), likely_negatives=0.5)
    for seed in range(4):
        rng = np.random.default_rng((7, seed))
        expected = dataset.sample_of(int(rng.integers(dataset.num_items)), rng, recipe)
        drawn = dataset.draw(np.random.default_rng((7, seed)), recipe)
        assert (drawn.source, drawn.conversations) == (expected.source, expected.conversations)
        assert np.array_equal(drawn.masks, expected.masks)
        assert np.array_equal(drawn.image, expected.image)


def test_data_that_is_there_and_cannot_be_used_is_broken_not_missing(run, root):
    for path in (root / "ade20k/annotations/training").iterdir():
        path.rename(path.with_suffix(".jpg"))
    for flags in (("--num_samples=2",), ("--num_samples=2", "--sem_seg_data=ade20k")):
        code, printed = run(*flags)
        assert code == 1
        assert "ade20k|train broken" in printed
        assert "a label as .jpg cannot hold class numbers" in printed


def test_all_evaluation_sets_that_are_there_are_checked(run, root):
    write_ade20k(root, [blocks([1, 2])], "validation")
    code, printed = run("--val_dataset_list=all", "--num_samples=1")
    assert code == 0
    assert "ade20k|val" in printed
