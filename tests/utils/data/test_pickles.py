"""Pickles of referring data sets: no code, and nothing larger than the file."""

from __future__ import annotations

import pickle
import pickletools
import time

import pytest

from benchmarks.attack.data import HUGE_PICKLES
from benchmarks.attack.pickles import PAYLOADS
from model.errors import UserError
from utils.data.pickles import load_plain_pickle

REFERENCES = [
    {"ref_id": n, "ann_id": [n, -1], "split": "train", "sentences": [{"sent": "the döner", "n": 2**40, "x": 1.5}]}
    for n in range(300)
]  # fmt: skip


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_containers_are_read_in_every_protocol(tmp_path, protocol):
    path = tmp_path / "refs.p"
    for content in (
        pickle.dumps(REFERENCES, protocol),
        pickletools.optimize(pickle.dumps(REFERENCES, protocol)),
    ):
        path.write_bytes(content)
        assert load_plain_pickle(path) == REFERENCES


@pytest.mark.parametrize("name", PAYLOADS)
def test_code_in_a_pickle_is_refused(tmp_path, name):
    (tmp_path / "refs.p").write_bytes(PAYLOADS[name](f"touch {tmp_path}/executed"))
    if name == "second pickle":  # what follows the end of the first is not read
        assert load_plain_pickle(tmp_path / "refs.p") == {"a": 1}
    else:
        with pytest.raises(UserError, match="is refused"):
            load_plain_pickle(tmp_path / "refs.p")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "name", [name for name in HUGE_PICKLES if "GB" in name or "2^" in name or "10^" in name]
)
def test_sizes_beyond_the_file_are_refused_before_anything_is_allocated(tmp_path, name):
    (tmp_path / "refs.p").write_bytes(HUGE_PICKLES[name])
    started = time.monotonic()
    with pytest.raises(UserError, match=r"file of \d+ bytes|larger than the file"):
        load_plain_pickle(tmp_path / "refs.p")
    assert time.monotonic() - started < 1
