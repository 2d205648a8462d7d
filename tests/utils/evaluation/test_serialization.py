"""Records of finished samples: the same after the way through a file, and nothing else gets out of one."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from utils.evaluation.metrics import Overlap
from utils.evaluation.protocols import MaskRecord, SemanticRecord, VqaRecord
from utils.evaluation.serialization import from_json, to_json
from utils.reports.best_and_worst import CompressedRow, Extremes, compress, decompress, worst_and_best
from utils.reports.drawing import LegendEntry
from utils.reports.sheet import mask_row


def through_a_file(value):
    return from_json(json.loads(json.dumps(to_json(value))))


def same(ours, theirs) -> bool:
    """Equal in value, type and, of arrays, in every byte."""
    if type(ours) is not type(theirs):
        return False
    if isinstance(ours, np.ndarray):
        return (
            ours.dtype == theirs.dtype and ours.shape == theirs.shape and ours.tobytes() == theirs.tobytes()
        )
    if isinstance(ours, list | tuple):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    if isinstance(ours, dict):
        return ours.keys() == theirs.keys() and all(same(ours[key], theirs[key]) for key in ours)
    if hasattr(ours, "__dataclass_fields__"):
        return same(vars(ours), vars(theirs))
    return ours == theirs or (isinstance(ours, float) and math.isnan(ours) and math.isnan(theirs))


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        -3,
        0.1 + 0.2,
        math.nan,
        -math.inf,
        'a "text" with \n and ä',
        b"\x00\xff",
        [1, [2.5, None]],
        (1, ("a", [])),
        {"a": {"b": (1,)}},
        {1: "a", (2, 3): "b"},
        {"$array": "a key that is a mark"},
        np.arange(6, dtype=np.int16).reshape(2, 3),
        np.array([], dtype=np.float64).reshape(0, 4),
        np.array([1e-300, np.nan, -0.0]),
        np.arange(12).reshape(3, 4).T,
        np.array([True, False]),
        np.float32(0.1),
        np.int64(2**40),
        np.bool_(True),
        VqaRecord(exact=True, rouge_l=2 / 3),
        [MaskRecord(overlap=Overlap(intersection=1, prediction=2, target=3), no_target=False)],
        SemanticRecord(
            cells=np.array([3, 4], np.int32),
            counts=np.array([1, 2]),
            asked=np.array([0], np.int16),
            answered_present=np.array([], np.int16),
            absent=np.array([1], np.int16),
        ),
        LegendEntry(name="sky", colour=(1, 2, 3)),
    ],
)
def test_a_value_is_the_same_after_the_way_through_a_file(value):
    assert same(through_a_file(value), value)


def test_an_array_read_back_can_be_written_to():
    array = through_a_file(np.zeros(3))
    array += 1
    assert array.tolist() == [1, 1, 1]


@pytest.mark.parametrize("value", [object(), {1, 2}, np.array([object()]), np.array(["text"]), print, 1j])
def test_what_has_no_agreed_form_is_not_written(value):
    with pytest.raises(TypeError, match="may not hold"):
        to_json(value)


@pytest.mark.parametrize(
    "value",
    [
        {"$record": "Popen", "fields": {"args": ["touch", "x"]}},
        {"$record": "MaskRecord", "fields": {"overlap": 1, "wrong": 2}},
        {"$record": "MaskRecord"},
        {"$array": {"dtype": "|O", "shape": [1], "data": "gASVAA=="}},
        {"$array": {"dtype": "<f8", "shape": [2], "data": "eJwDAAAAAAE="}},
        {"$array": {"dtype": "no such type", "shape": [], "data": ""}},
        {"$bytes": "not base 64"},
        {"$unheard": 1},
        {"$tuple": 1},
    ],
)
def test_what_we_do_not_write_is_not_read(value):
    with pytest.raises(ValueError, match=r"record|reshape|array"):
        from_json(value)


# ---------------------------------------------------------------------------------------- gallery


def test_a_packed_picture_is_small_and_its_labels_are_exact():
    image = np.zeros((900, 1200, 3), dtype=np.uint8)
    image[:, 600:] = (200, 100, 50)
    truth = np.zeros((900, 1200), dtype=np.uint8)
    truth[:, 600:] = 1
    row = decompress(
        through_a_file(compress(mask_row(image, truth, 1 - truth, question="?", answer="", iou=0.25)))
    )
    assert row.image.shape == (240, 320, 3)
    assert (row.truth[:, :160] == -1).all()
    assert (row.truth[:, 160:] == 0).all()
    assert (row.prediction == -1 - row.truth).all()
    assert np.abs(row.image[:, 200:].astype(int) - (200, 100, 50)).max() <= 3
    assert row.score == 0.25


def test_a_small_picture_keeps_its_size():
    image = np.full((3, 5, 3), 7, dtype=np.uint8)
    packed = compress(mask_row(image, image[..., 0], image[..., 0], question="?", answer="", iou=1.0))
    assert isinstance(packed, CompressedRow)
    assert decompress(packed).image.shape == (3, 5, 3)


@pytest.mark.parametrize("num_processes", [1, 3])
@pytest.mark.parametrize("levels", [1, 3, 1000])  # few levels: many samples are equally good
@pytest.mark.parametrize("num_samples", [1, 7, 300])
def test_every_sample_that_ends_among_the_extremes_entered_when_it_came(num_samples, levels, num_processes):
    rng = np.random.default_rng(0)
    scores = {index: float(rng.integers(levels)) for index in range(num_samples)}
    scores[num_samples] = math.nan
    entered = set()
    for process in range(num_processes):
        extremes = Extremes(4)
        mine = [index for index in scores if index % num_processes == process]
        entered |= {index for index in mine if extremes.enters(index, scores[index])}
        ranked = list(extremes._worst), list(extremes._best)
        assert not any(extremes.enters(index, scores[index]) and index not in entered for index in mine)
        assert (extremes._worst, extremes._best) == ranked  # a second time changes nothing
    worst, best = worst_and_best(scores, 4)
    assert set(worst) | set(best) <= entered
    assert not set(worst) & set(best)
    known = sorted(score for score in scores.values() if not math.isnan(score))
    assert [scores[index] for index in worst] == known[: len(worst)]
    assert [scores[index] for index in best] == known[::-1][: len(best)]
    assert len(worst) + len(best) == min(8, num_samples)
    assert len(entered) <= max(120, num_samples // 2)  # not a picture of every sample
