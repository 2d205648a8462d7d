"""Opening what --val_dataset_list names."""

from __future__ import annotations

import logging
import shutil

import pytest

from utils.data.val_datasets import known_entries, open_datasets, open_list

KNOWN = {
    "ade20k", "cocostuff", "cityscapes", "mapillary", "pc59", "pc459", "pas20", "refcoco|unc|val",
    "refcoco|unc|testA", "refcoco|unc|testB", "refcoco+|unc|testA", "refcocog|umd|val", "refcocog|umd|test",
    "R-refcoco|unc|val", "R-refcocog|umd|val", "fprefcoco+|berkeley_exclude_unified|val",
    "grefcoco|unc|val", "grefcoco|unc|testB", "ReasonSeg|val", "ReasonSeg|test", "llava_instruct_150k",
}  # fmt: skip


def test_all_are_the_evaluation_splits_of_every_data_set():
    entries = [str(entry) for entry in known_entries()]
    assert set(entries) >= KNOWN
    assert len(entries) == len(set(entries))
    assert not [entry for entry in entries if entry.endswith("train")]
    assert not {"openimage", "paco_lvis", "pascal_part"} & set(entries)


def test_all_opens_what_is_there_and_lists_what_is_not(toy_world, tmp_path, caplog):
    for name in ("ade20k", "refer_seg"):
        (tmp_path / name).symlink_to(toy_world / name)
    with caplog.at_level(logging.INFO, logger="utils"):
        opened = open_list("all", tmp_path)
    assert {"ade20k", "refcoco|unc|val"} <= opened.keys()
    assert all(len(dataset) for dataset in opened.values())
    assert not {"cityscapes", "ReasonSeg|val"} & opened.keys()
    found, missing = caplog.messages[-2:]
    assert found.startswith("--val_dataset_list all: ade20k, ")
    assert "cityscapes" in missing
    assert "ReasonSeg|val" in missing
    assert "ade20k" not in missing


def test_all_beside_other_entries_adds_to_them(toy_world, tmp_path):
    (tmp_path / "ade20k").symlink_to(toy_world / "ade20k")
    assert list(open_list("ade20k|train, all", tmp_path)) == ["ade20k|train", "ade20k"]


def test_all_in_a_folder_without_any_says_what_it_holds(tmp_path):
    (tmp_path / "holiday_photos").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no evaluation data set in .*holiday_photos"):
        open_list("all", tmp_path)
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        open_list("all", tmp_path / "nowhere")


def test_every_missing_data_set_is_named_with_what_is_there(toy_world, tmp_path):
    shutil.copytree(toy_world / "ade20k", tmp_path / "ade20k")
    with pytest.raises(FileNotFoundError) as problem:
        open_datasets(["cityscapes", "ade20k", "ReasonSeg|val"], tmp_path)
    for part in ("cityscapes needs", "ReasonSeg needs", f"{tmp_path} holds ade20k"):
        assert part in str(problem.value)
    with pytest.raises(ValueError, match="unknown data set 'ade20j'"):
        open_datasets(["cityscapes", "ade20j"], tmp_path)
