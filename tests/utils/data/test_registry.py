from dataclasses import dataclass

import pytest

from tests.utils.data.layouts import blocks, write_ade20k
from utils.data.dataset_flags import parse_dataset_flags
from utils.data.registry import DATASETS, Entry, build_val_dataset, parse_val_list


@dataclass(frozen=True)
class Flags:
    dataset: str = "sem_seg||refer_seg||vqa||reason_seg"
    sample_rates: str = "10,6,1,2"
    sem_seg_data: str = "cocostuff||ade20k||cityscapes"
    sem_seg_rates: str = "6,3,1"
    refer_seg_data: str = "refclef||refcoco||refcoco+||refcocog"
    refer_seg_rates: str = ""
    neg_refer_seg_data: str = "R-refcoco"
    neg_refer_seg_rates: str = ""
    vqa_data: str = "llava_instruct_150k"
    vqa_rates: str = ""
    reason_seg_data: str = "ReasonSeg|train"
    reason_seg_rates: str = ""


def shares(**flags):
    return {str(entry): pytest.approx(entry.rate) for entry in parse_dataset_flags(Flags(**flags))}


def test_a_data_set_gets_its_share_of_its_source():
    assert shares() == {
        "cocostuff": 10 / 19 * 0.6,
        "ade20k": 10 / 19 * 0.3,
        "cityscapes": 10 / 19 * 0.1,
        "refclef": 6 / 19 / 4,
        "refcoco": 6 / 19 / 4,
        "refcoco+": 6 / 19 / 4,
        "refcocog": 6 / 19 / 4,
        "llava_instruct_150k": 1 / 19,
        "ReasonSeg|train": 2 / 19,
    }


def test_rates_that_are_not_stated_are_the_recipes():
    assert shares(
        dataset="vqa||sem_seg", sample_rates="", sem_seg_rates="", sem_seg_data="ade20k||cocostuff"
    ) == {
        "llava_instruct_150k": 1 / 11,
        "ade20k": 10 / 11 / 3,
        "cocostuff": 10 / 11 * 2 / 3,
    }


def test_every_source_takes_rates_for_its_data_sets():
    flags = {"dataset": "refer_seg||reason_seg", "sample_rates": "3,1", "refer_seg_data": "refcoco||grefcoco"}
    assert shares(**flags, refer_seg_rates="1,2") == {
        "refcoco": 3 / 4 / 3,
        "grefcoco": 3 / 4 * 2 / 3,
        "ReasonSeg|train": 1 / 4,
    }
    both = {"reason_seg_data": "ReasonSeg|train||ReasonSeg|val", "reason_seg_rates": "9,1"}
    assert shares(**flags, **both)["ReasonSeg|val"] == 1 / 40
    with pytest.raises(ValueError, match=r"--vqa_rates has 2 rates \(1,2\) for the 1 of --vqa_data"):
        shares(vqa_rates="1,2")


def test_sources_that_are_not_drawn_from_are_not_read():
    assert shares(dataset="refer_seg", sample_rates="1", refer_seg_data="refcoco|unc", vqa_data="") == {
        "refcoco|unc": 1
    }


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"dataset": "sem_seg||video"}, "--dataset: unknown source 'video'; known: sem_seg, refer_seg"),
        ({"dataset": ""}, "--dataset is empty"),
        ({"dataset": "vqa||vqa"}, "--dataset names vqa more than once"),
        ({"sem_seg_data": "ade21k"}, "--sem_seg_data: unknown data set 'ade21k'; known: ade20k"),
        ({"sem_seg_data": "refcoco"}, "--sem_seg_data: unknown data set 'refcoco'"),
        ({"sample_rates": "10,6,1"}, r"--sample_rates has 3 rates \(10,6,1\) for the 4 of --dataset"),
        ({"sem_seg_rates": "1,2"}, "--sem_seg_rates has 2 rates"),
        ({"sem_seg_rates": "1,2,x"}, "--sem_seg_rates takes numbers"),
        ({"sample_rates": "1,0,1,1"}, "every rate must be > 0"),
        ({"sample_rates": "1,nan,1,1"}, "every rate must be > 0"),
        ({"sample_rates": "1,inf,1,1"}, r"every rate must be > 0 and at most 1e\+09, got '1,inf,1,1'"),
        ({"sem_seg_rates": "1e308,1e308,1e308"}, "at most"),
        # of sources that are not drawn from
        ({"neg_refer_seg_rates": "x"}, "--neg_refer_seg_rates takes numbers separated by commas, got 'x'"),
        ({"neg_refer_seg_data": "refcoc"}, "--neg_refer_seg_data: unknown data set 'refcoc'"),
        ({"dataset": "vqa", "sample_rates": "", "sem_seg_rates": "1,-1"}, "--sem_seg_rates: every rate"),
    ],
)
def test_flags_that_make_no_sense_are_refused(flags, message):
    with pytest.raises(ValueError, match=message):
        parse_dataset_flags(Flags(**flags))


def test_the_evaluation_list_is_split_at_commas_and_its_entries_at_bars():
    assert parse_val_list("ReasonSeg|val, refcoco|unc|testA,ade20k") == (
        Entry("ReasonSeg", ("val",)),
        Entry("refcoco", ("unc", "testA")),
        Entry("ade20k"),
    )
    with pytest.raises(ValueError, match="--val_dataset_list: unknown data set 'coco'; known: ade20k, "):
        parse_val_list("coco|val")


def test_evaluation_takes_the_validation_split_and_training_the_training_split(tmp_path):
    write_ade20k(tmp_path, [blocks([1])], "training")
    write_ade20k(tmp_path, [blocks([1]), blocks([2])], "validation")
    assert len(build_val_dataset("ade20k", tmp_path)) == 2
    assert len(build_val_dataset("ade20k|train", tmp_path)) == 1
    assert len(Entry("ade20k").open(tmp_path, training=True)) == 1
    with pytest.raises(ValueError, match="ade20k takes one field"):
        build_val_dataset("ade20k|val|x", tmp_path)


def test_every_data_set_is_known_by_its_name_and_belongs_to_a_source():
    for name, dataset in DATASETS.items():
        assert dataset.name == name
        assert dataset.source in ("sem_seg", "refer_seg", "neg_refer_seg", "vqa", "reason_seg")
