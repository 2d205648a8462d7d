import json
from pathlib import Path

import pytest
import torch.distributed as dist

from tests.two_processes import fork_two
from utils.data.counts import MAX_NAMED, DataCounts
from utils.data.types import Batch


def batch(num_samples: int, *skipped: str, **counts: int) -> Batch:
    names = ("x",) * num_samples
    return Batch(inputs=None, sources=names, datasets=names, skipped=skipped, **counts)


def counted(*batches: Batch) -> DataCounts:
    counts = DataCounts()
    for one in batches:
        counts.add(one)
    counts.gather()
    return counts


def test_batches_are_added_up():
    counts = counted(
        batch(4, "a: broken"), batch(4, num_shortened=2, classes_left_out=7, conversations_left_out=1)
    )
    counts.gather()  # nothing is counted twice
    assert counts.state() == {
        "samples": 8, "unusable": 1, "shortened": 2, "classes_left_out": 7, "conversations_left_out": 1,
        "datasets": {"x": 8}, "first": ["a: broken"],
    }  # fmt: skip
    assert counts.describe().splitlines() == [
        "8 samples; 1 unusable items replaced (11.11%); "
        "2 samples shortened to --model_max_length, by 7 absent classes and 1 conversations",
        "  unusable: a: broken",
    ]


def test_the_first_unusable_items_are_remembered_each_once():
    counts = counted(batch(2, "a: x", "b: x"), batch(2, "a: x"), batch(2, *(f"{k}: x" for k in range(20))))
    assert counts.unusable == 23
    assert counts.first == ["a: x", "b: x", "0: x", "1: x", "2: x"]
    assert len(counts.first) == MAX_NAMED


def test_counts_survive_a_checkpoint():
    counts = counted(batch(100, "a: x"))
    resumed = DataCounts.from_state(counts.state())
    resumed.add(batch(10, "b: y"))
    resumed.gather()
    assert (resumed.samples, resumed.unusable, resumed.first) == (110, 2, ["a: x", "b: y"])
    assert DataCounts.from_state({}) == DataCounts()


def test_one_bad_file_among_the_first_does_not_stop_a_run_but_too_many_do():
    counted(batch(9, "a: x")).check(0.01)
    counted(batch(9, *("a: x",) * 10)).check(0.01)  # 1 % of at least 1000 draws
    with pytest.raises(ValueError, match=r"11 of 20 draws .* --max_bad_fraction 0.01 .*first: a: x; b: y\. "):
        counted(batch(9, *("a: x", "b: y") * 5, "a: x")).check(0.01)
    counted(batch(9900, *("a: x",) * 100)).check(0.01)
    with pytest.raises(ValueError, match="101 of 10000 draws"):
        counted(batch(9899, *("a: x",) * 101)).check(0.01)
    with pytest.raises(ValueError, match="1 of 10 draws"):
        counted(batch(9, "a: x")).check(0.0)


def count_on_a_rank(rank: int, rendezvous: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    counts = counted(batch(3, f"{rank}: x"), batch(rank))
    print(json.dumps(counts.state()))
    dist.destroy_process_group()


def test_processes_count_together(tmp_path):
    states = [
        json.loads(one.printed.splitlines()[-1]) for one in fork_two(count_on_a_rank, tmp_path / "meet")
    ]
    assert states[0] == states[1]
    assert (states[0]["samples"], states[0]["unusable"], states[0]["first"]) == (7, 2, ["0: x", "1: x"])
