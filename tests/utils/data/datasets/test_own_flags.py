from dataclasses import replace

import pytest

from tests.utils.data.coco_files import BOX, annotation, content
from tests.utils.data.coco_files import write as write_coco
from tests.utils.data.datasets.test_own_sem import write
from tests.utils.data.layouts import blocks, save
from utils.config.training import TrainConfig
from utils.data.dataset_flags import parse_dataset_flags
from utils.data.registry import Entry, build_val_dataset, parse_entry, parse_val_list
from utils.data.val_datasets import open_datasets

CONFIG = TrainConfig(version="any", sem_seg_data="ade20k||cocostuff", sem_seg_rates="3,1")


def shares(**flags):
    return {str(entry): pytest.approx(entry.rate) for entry in parse_dataset_flags(replace(CONFIG, **flags))}


def test_own_data_is_a_source_with_a_rate():
    assert shares(
        dataset="sem_seg||own_sem:./my data||own_coco:C:/b.json|exhaustive=true", sample_rates="4,3,1"
    ) == {
        "ade20k": 4 / 8 * 3 / 4,
        "cocostuff": 4 / 8 / 4,
        "own_sem:./my data": 3 / 8,
        "own_coco:C:/b.json|exhaustive=true": 1 / 8,
    }


def test_without_rates_own_data_counts_as_much_as_all_semantic_data_sets():
    assert shares(dataset="own_sem:./a||sem_seg||own_sem:./b", sem_seg_data="ade20k", sem_seg_rates="") == {
        "own_sem:./a": 1 / 3,
        "ade20k": 1 / 3,
        "own_sem:./b": 1 / 3,
    }


def test_an_entry_reads_back_as_it_is_written():
    for text in (
        "own_sem:./my_data|val",
        "own_jsonl:/a:b/c.jsonl",
        "own_coco:./b|train|exhaustive=true|images=./x",
    ):
        (entry,) = parse_val_list(text)
        assert str(entry) == text
    assert parse_val_list("own_sem:./a|val, own_coco:b.json") == (
        Entry("own_sem", ("./a", "val")),
        Entry("own_coco", ("b.json",)),
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"dataset": "own_sem"}, "--dataset: own_sem needs the path of the data: own_sem:PATH"),
        (
            {"dataset": "own_seg:./a"},
            "unknown source 'own_seg:./a'; known: sem_seg, .*, own_sem:PATH, own_coco:PATH",
        ),
        ({"dataset": "own_sem:a||own_sem:a"}, "--dataset names own_sem:a more than once"),
        (
            {"dataset": "sem_seg||own_sem:a", "sample_rates": "1"},
            r"--sample_rates has 1 rates \(1\) for the 2",
        ),
        (
            {"sem_seg_data": "own_sem:./a"},
            r'--sem_seg_data: own data is a source; write --dataset "sem_seg\|\|own_sem',
        ),
    ],
)
def test_flags_of_own_data_that_make_no_sense_are_refused(flags, message):
    with pytest.raises(ValueError, match=message):
        parse_dataset_flags(replace(CONFIG, sem_seg_rates="", **flags))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("own_sem:a|val|test", r"own_sem:a takes one split, got 'val\|test'; write own_sem:a\|val"),
        ("own_sem:a||val", "takes one split"),
        ("own_sem:a|exhaustive=yes", "own_sem:a: exhaustive is true or false, got 'yes'"),
        ("own_sem:a|exhaustive=true|exhaustive=true", "'exhaustive=true' is unknown or repeated"),
        ("own_sem:a|images=b", "option 'images=b' is unknown or repeated; known: exhaustive"),
        ("own_jsonl:a|exhaustive=true", "option 'exhaustive=true' is unknown or repeated; known: images"),
    ],
)
def test_options_that_make_no_sense_are_refused(entry, message):
    with pytest.raises(ValueError, match=message):
        build_val_dataset(entry, ".")


def test_a_path_counts_from_the_working_directory_and_then_from_dataset_dir(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    write(tmp_path / "dataset", [blocks([1])])
    assert len(build_val_dataset("own_sem:my_data", tmp_path / "dataset")) == 1
    write(tmp_path / "here", [blocks([1]), blocks([2])])
    assert len(build_val_dataset("own_sem:my_data", tmp_path / "dataset")) == 2
    assert len(build_val_dataset(f"own_sem:{tmp_path}/dataset/my_data", tmp_path / "dataset")) == 1
    with pytest.raises(
        FileNotFoundError,
        match=r"needs .*here/other or .*dataset/other; there is neither a file nor a folder",
    ):
        build_val_dataset("own_sem:other", tmp_path / "dataset")


def test_own_data_needs_no_dataset_dir(tmp_path):
    data = write(tmp_path, [blocks([1])])
    opened = open_datasets([f"own_sem:{data}"], tmp_path / "nowhere")
    assert list(opened) == [f"own_sem:{data}"]
    with pytest.raises(FileNotFoundError, match=r"--dataset_dir .*nowhere is not a folder"):
        open_datasets([f"own_sem:{data}", "ade20k"], tmp_path / "nowhere")


def test_two_folders_are_counted_apart(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / name, [blocks([1])])
    first, second = (
        parse_entry(f"own_sem:{tmp_path}/{name}/my_data", "--dataset").open(".", training=True)
        for name in "ab"
    )
    assert first.name != second.name
    assert first.name == f"own_sem:{tmp_path}/a/my_data"


def test_images_may_have_any_usual_suffix(tmp_path):
    data = write(tmp_path, [blocks([1])])
    for suffix in ("JPG", "jpeg", "webp", "bmp", "tif"):
        save(data / f"images/{suffix}.{suffix}", blocks([1]))
        save(data / f"labels/{suffix}.png", blocks([1]))
    assert len(build_val_dataset(f"own_sem:{data}", ".")) == 6


def test_exhaustive_is_read_in_any_case_and_images_is_a_folder(tmp_path):
    path = write_coco(tmp_path, content(annotation(5, [BOX])))
    assert parse_entry(f"own_coco:{path}|exhaustive=True", "--dataset").open("nowhere").knows_absent
    with pytest.raises(ValueError, match="exhaustive is true or false, got 'yes'"):
        parse_entry(f"own_coco:{path}|exhaustive=yes", "--dataset").open("nowhere")
    with pytest.raises(ValueError, match="is a file; name the folder that it is in"):
        parse_entry(f"own_coco:{path}|images={tmp_path / '1.png'}", "--dataset").open("nowhere")
