import collections
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from torch.utils.data import DataLoader

from model.text.format import SequenceFormat
from tests.utils.data.layouts import (
    blocks,
    box_polygon,
    dialogue,
    reference,
    write_ade20k,
    write_cocostuff,
    write_llava,
    write_reason_seg,
    write_refer,
)
from utils.data.mixture import BatchIndices, Mixture, build_train_mixture
from utils.data.types import UnusableItemError


@dataclass(frozen=True)
class Config:
    dataset_dir: str
    dataset: str = "sem_seg||refer_seg||vqa||reason_seg"
    sample_rates: str = "10,6,1,2"
    sem_seg_data: str = "cocostuff||ade20k"
    sem_seg_rates: str = "3,2"
    refer_seg_data: str = "refcoco"
    refer_seg_rates: str = ""
    vqa_data: str = "llava_instruct_150k"
    vqa_rates: str = ""
    reason_seg_data: str = "ReasonSeg|train"
    reason_seg_rates: str = ""
    neg_refer_seg_data: str = "R-refcoco"
    neg_refer_seg_rates: str = ""
    num_all_classes: int = 10
    num_expressions: int = 5
    num_questions: int = 3
    explanatory: float = 0.1
    likely_negatives: float = 0.0
    seed: int = 0


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_ade20k(tmp_path, [blocks([k, k + 1]) for k in range(1, 9)])
    write_cocostuff(tmp_path, [blocks([k, k + 1]) for k in range(1, 9)])
    polygon = [box_polygon(3, 3, 9, 9)]
    write_refer(tmp_path, "refcoco", [reference(0, 1, 1, "train", "a", "b")], {1: polygon}, [1])
    write_llava(tmp_path, [dialogue("1.jpg", "What?", "A ball.")])
    shape = {"label": "target", "points": [[2, 2], [9, 2], [9, 9]]}
    write_reason_seg(tmp_path, "train", "a", {"text": ["why?"], "is_sentence": True, "shapes": [shape]})
    return tmp_path


def mixture(root: Path, **settings) -> Mixture:
    return build_train_mixture(Config(str(root), **settings), SequenceFormat.named("paper"))


def same(a, b) -> bool:
    return (
        a.source == b.source
        and a.conversations == b.conversations
        and np.array_equal(a.image, b.image)
        and np.array_equal(a.masks, b.masks)
    )


def test_a_sample_depends_on_seed_and_index_alone(root):
    first, second, other = mixture(root), mixture(root), mixture(root, seed=1)
    forwards = [first[index] for index in range(12)]
    backwards = [second[index] for index in reversed(range(12))]
    assert all(same(a, b) for a, b in zip(forwards, reversed(backwards), strict=True))
    assert not all(same(forwards[index], other[index]) for index in range(12))
    assert same(first[10**9], second[10**9])


def test_draws_follow_the_rates(root):
    stream = mixture(root)
    counts = collections.Counter(stream[index].dataset for index in range(600))
    expected = {
        "cocostuff": 10 / 19 * 0.6,
        "ade20k": 10 / 19 * 0.4,
        "refcoco": 6 / 19,
        "llava_instruct_150k": 1 / 19,
        "ReasonSeg": 2 / 19,
    }
    assert counts.keys() == expected.keys()
    for name, share in expected.items():
        assert abs(counts[name] / 600 - share) < 4 * (share * (1 - share) / 600) ** 0.5, name
    assert "ade20k|train: 21.1% of the draws, 8 items" in stream.describe()


@pytest.mark.parametrize(("num_workers", "world_size"), [(0, 1), (1, 1), (1, 2), (2, 2), (4, 1), (1, 4)])
def test_sample_i_is_the_same_with_any_number_of_workers_and_ranks(root, num_workers, world_size):
    stream, drawn = mixture(root), {}
    for rank in range(world_size):
        indices = BatchIndices(batch_size=2, num_batches=8 // world_size, rank=rank, world_size=world_size)
        # A stream of its own for each process, as on machines that share nothing but the seed.
        loader = DataLoader(mixture(root), batch_sampler=indices, collate_fn=list, num_workers=num_workers)
        for batch, numbers in zip(loader, indices, strict=True):
            assert not drawn.keys() & set(numbers), "two ranks draw the same sample"
            drawn |= dict(zip(numbers, batch, strict=True))
    assert sorted(drawn) == list(range(16))
    assert all(same(sample, stream[index]) for index, sample in drawn.items())


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_ranks_share_the_samples_without_overlap_or_gap(world_size):
    ranks = [
        list(BatchIndices(batch_size=2, num_batches=12 // world_size, rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    in_time = [index for step in zip(*ranks, strict=True) for batch in step for index in batch]
    assert in_time == list(range(24))


def test_a_resumed_run_goes_on_where_it_stopped():
    whole = list(BatchIndices(batch_size=2, num_batches=10, rank=1, world_size=2))
    resumed = BatchIndices(batch_size=2, num_batches=7, first_sample=12, rank=1, world_size=2)
    assert list(resumed) == whole[3:]
    assert len(resumed) == 7


@pytest.mark.parametrize("world_size", [1, 2, 3, 6])
def test_a_run_that_goes_on_with_other_processes_uses_the_samples_that_come_next(world_size):
    ranks = [
        BatchIndices(
            batch_size=2, num_batches=6 // world_size, first_sample=24, rank=rank, world_size=world_size
        )
        for rank in range(world_size)
    ]
    in_time = [index for step in zip(*ranks, strict=True) for batch in step for index in batch]
    assert in_time == list(range(24, 36))


def test_unusable_items_are_replaced_by_another_draw_and_counted(root, caplog):
    for path in sorted((root / "ade20k/annotations/training").iterdir())[:4]:
        path.write_bytes(b"")
    stream = mixture(root, dataset="sem_seg", sample_rates="1")
    drawn = [stream[index] for index in range(60)]
    replaced = [sample for sample in drawn if sample.skipped]
    assert replaced
    for sample in replaced:
        assert sample.dataset == "ade20k"
        assert all("cannot be decoded" in reason and ".png" in reason for reason in sample.skipped)
    assert len({sample.source for sample in replaced}) > 1, "not always the same item instead"
    assert len([r for r in caplog.records if "replaced" in r.message]) == sum(len(s.skipped) for s in drawn)
    untouched = mixture(root, dataset="sem_seg", sample_rates="1")
    assert all(same(a, untouched[index]) for index, a in enumerate(drawn))


def test_a_data_set_without_any_usable_item_stops_the_run(root):
    for path in (root / "ade20k/annotations/training").iterdir():
        path.write_bytes(b"")
    stream = mixture(root, dataset="sem_seg", sample_rates="1", sem_seg_data="ade20k", sem_seg_rates="")
    with pytest.raises(ValueError, match=r"ade20k\|train: 100 unusable items in a row; the last: .*\.png"):
        stream[0]


def test_samples_that_cannot_be_made_to_fit_are_replaced(root):
    def fit(sample):
        if "ADE_training_00000001" in sample.source:
            raise UnusableItemError(sample.source, "not this one")
        return replace(sample, classes_left_out=1)

    stream = build_train_mixture(Config(str(root)), SequenceFormat.named("paper"), fit)
    drawn = [stream[index] for index in range(60)]
    assert not any("ADE_training_00000001" in sample.source for sample in drawn)
    assert any("not this one" in reason for sample in drawn for reason in sample.skipped)
    assert all(sample.classes_left_out == 1 for sample in drawn)


def test_a_missing_data_set_is_an_error_before_the_first_draw(root):
    with pytest.raises(FileNotFoundError, match="cityscapes needs"):
        mixture(root, sem_seg_data="ade20k||cityscapes")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seed": -1}, "seed must be >= 0"),
        ({"num_all_classes": 0}, "num_all_classes must be >= 1"),
        ({"explanatory": 1.5}, "explanatory is a fraction"),
        ({"likely_negatives": -0.5}, "likely_negatives is a fraction"),
    ],
)
def test_settings_are_checked(root, settings, message):
    with pytest.raises(ValueError, match=message):
        mixture(root, **settings)
    with pytest.raises(IndexError):
        mixture(root)[-1]
