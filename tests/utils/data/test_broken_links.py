"""A name that is there and cannot be read is an error: nothing else is taken in its place."""

from __future__ import annotations

import pytest

from utils.data.registry import build_val_dataset, parse_entry
from utils.toy.world import WorldConfig, make_world

NAMES = {
    "mapillary": "mapillary/config_v2.0.json",
    "ReasonSeg|train": "reason_seg/ReasonSeg/explanatory/train.json",
    "openimage": "OpenImageV6/train_negatives.json",
    "ade20k": "ade20k",
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world") / "data"
    make_world(WorldConfig(out=str(folder), num_images=1, layouts="mapillary,reason,openimage,ade20k"))
    # A second choice, which must not be taken.
    (folder / "ADEChallengeData2016").symlink_to("ade20k_kept")
    return folder


@pytest.mark.parametrize("target", ["nowhere", None], ids=["to nothing", "to itself"])
@pytest.mark.parametrize("entry", NAMES)
def test_a_link_that_leads_nowhere_is_not_replaced_by_another_choice(entry, target, world):
    path = world / NAMES[entry]
    kept = path.with_name(f"{path.name}_kept")
    path.rename(kept)
    path.symlink_to(target or path.name)
    try:
        with pytest.raises((OSError, ValueError), match=path.name):
            parse_entry(entry, "--dataset").open(world, training=entry != "mapillary")
    finally:
        path.unlink()
        kept.rename(path)


def test_own_data_here_is_not_replaced_by_that_in_the_root(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "root" / "talk").mkdir(parents=True)
    (tmp_path / "talk").symlink_to("nowhere")
    with pytest.raises(OSError, match="talk"):
        build_val_dataset("own_jsonl:talk", tmp_path / "root")
