"""Records of finished samples: the same after the way through a file, and nothing else gets out of one."""

from __future__ import annotations

import json
import math
from typing import get_args

import numpy as np
import pytest

from utils.evaluation.metrics import Overlap
from utils.evaluation.protocols import (
    MaskRecord,
    ReasoningProtocol,
    ReferringProtocol,
    SemanticProtocol,
    SemanticRecord,
    VqaProtocol,
    VqaRecord,
)
from utils.evaluation.serialization import RECORD_KINDS, from_json, to_json
from utils.reports.drawing import LegendEntry


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
        [
            MaskRecord(overlap=Overlap(intersection=1, prediction=2, target=3), no_target=False),
            MaskRecord(
                overlap=Overlap(intersection=0, prediction=0, target=0),
                no_target=True,
                reference=7,
                probability=0.1,
            ),
        ],
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


def test_the_records_of_every_protocol_may_stand_in_a_file():
    kinds = []
    for protocol in (SemanticProtocol, ReferringProtocol, ReasoningProtocol, VqaProtocol):
        [base] = protocol.__orig_bases__
        _, _, record = get_args(base)
        kinds += get_args(record) or [record]  # of a sequence, what it holds
    assert len(kinds) == 4
    assert set(kinds) <= set(RECORD_KINDS)
