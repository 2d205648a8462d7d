"""Data sets in shards give the samples, and tell the faults, of those on disk."""

from __future__ import annotations

import json
import pickle
import shutil
import tarfile
from dataclasses import fields, is_dataclass, replace

import numpy as np
import pytest

from tests.utils.data.coco_files import BOX, annotation, content
from tests.utils.data.index.test_same_samples import alike, all_of, described
from tests.utils.data.layouts import blocks, save, save_json, seeded_image, write_ade20k
from utils.config.data import DataConfig
from utils.data import storage
from utils.data.dataset_flags import parse_dataset_flags
from utils.data.mixture import build_train_mixture
from utils.data.registry import DATASETS, OWN_DATASETS, parse_entry, parse_val_list
from utils.data.shards.layout import INDEX, LISTED
from utils.data.shards.tree import open_shards
from utils.data.tools import shard
from utils.data.val_datasets import open_datasets

OWN = ("own_sem:own/labels", "own_coco:own/things", "own_jsonl:own/questions")
OF_SOURCE = {
    "sem_seg": ("ade20k", "cocostuff", "cityscapes", "mapillary", "openimage", "pascal_part", "paco_lvis"),
    "refer_seg": ("refclef", "refcoco", "refcoco+", "refcocog", "grefcoco", "refzom"),
    "neg_refer_seg": ("R-refcoco", "fprefcoco"),
    "vqa": ("llava_instruct_150k", "llava_mix"),
    "reason_seg": ("ReasonSeg|train", "MUSE|train", "LISA++|instance", "LISA++|cot|train"),
}
FOR_EVALUATION = (
    *("ade20k|val", "cityscapes", "pc59", "pc459", "pas20", "refcoco|unc|testA", "grefcoco", "ReasonSeg|val"),
    *("llava_instruct_150k", "MUSE|test_less", "LISA++|instance|val", *(f"{name}|val" for name in OWN)),
)
FLAGS = (
    f"--dataset={'||'.join((*OF_SOURCE, *OWN))}",
    *(f"--{source}_data={'||'.join(names)}" for source, names in OF_SOURCE.items()),
)
ENTRIES = [
    *((name, True) for names in (*OF_SOURCE.values(), OWN) for name in names),
    *((name, False) for name in FOR_EVALUATION),
]


@pytest.fixture(scope="session")
def shards(world, tmp_path_factory):
    """The world in shards of 100 kB."""
    out = tmp_path_factory.mktemp("packed") / "shards"
    shard.MEGABYTE, before = 10**5, shard.MEGABYTE
    try:
        flags = [*FLAGS, f"--val_dataset_list={','.join(FOR_EVALUATION)}", "--shard_mb=1"]
        assert shard.main([f"--dataset_dir={world}", f"--out={out}", *flags]) == 0
    finally:
        shard.MEGABYTE = before
    return out


def config(**flags):
    return replace(DataConfig(), **flags)


def without(value, *prefixes):
    """Any nested value with the places of the data cut from its texts."""
    if isinstance(value, str):
        for prefix in prefixes:
            value = value.replace(f"{prefix}/", "")
        return value
    if is_dataclass(value) and not isinstance(value, type):
        told = {each.name: without(getattr(value, each.name), *prefixes) for each in fields(value)}
        return told | {"kind": type(value).__name__}
    if isinstance(value, dict):
        return {without(name, *prefixes): without(held, *prefixes) for name, held in value.items()}
    if isinstance(value, list | tuple):
        return [without(each, *prefixes) for each in value]
    return value


def same(one, other, *prefixes):
    one, other = without(one, *prefixes), without(other, *prefixes)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return alike(one, other)


@pytest.mark.parametrize(("name", "training"), ENTRIES)
def test_samples_and_messages_are_those_of_the_files(name, training, world, shards, recipe):
    on_disk = parse_entry(name, "--dataset").open(world, training=training)
    if training:
        (entry,) = parse_dataset_flags(config(dataset=f"sharded:{shards}|{name}"))
    else:
        (entry,) = parse_val_list(f"sharded:{shards}|{name}")
    packed = entry.open("/nowhere", training=training)
    places = (f"{shards}/data", str(world))
    assert same(described(packed), described(on_disk), *places)
    assert same(all_of(packed, recipe, training), all_of(on_disk, recipe, training), *places)


def test_the_stream_of_a_run_is_the_same_sample_by_sample(world, shards):
    lists = {f"{source}_data": "||".join(names) for source, names in OF_SOURCE.items()}
    plain = config(dataset_dir=str(world), dataset="||".join((*OF_SOURCE, *OWN)), **lists)
    on_disk, packed = (
        build_train_mixture(one, one.sequence_format) for one in (plain, config(dataset=f"sharded:{shards}"))
    )
    assert packed.rates.tobytes() == on_disk.rates.tobytes()
    for index in (*range(12), 10**6):
        assert same(packed[index], on_disk[index], f"{shards}/data", str(world))


def test_any_tar_reader_unpacks_the_shards(world, shards):
    held = {}
    tars = sorted(shards.glob("shard-*.tar"))
    assert len(tars) > 3
    for tar in tars:
        with tarfile.open(tar) as file:
            held |= {member.name: file.extractfile(member).read() for member in file}
    for name, content_ in held.items():
        assert content_ == (world / name.removeprefix("data/")).read_bytes()
    tree = open_shards(str(shards))
    assert {f"{row.folder}/{row.name}" for row in tree.rows if row.shard >= 0} == held.keys()


def test_nothing_on_disk_but_the_shards_is_read(world, shards, tmp_path):
    moved = shutil.copytree(shards, tmp_path / "moved")
    dataset = parse_val_list(f"sharded:{moved}|ReasonSeg")[0].open(tmp_path / "none")
    assert dataset[0].source == f"{moved}/data/reason_seg/ReasonSeg/val/{dataset.items[0].image_path.name}"
    assert not (moved / "data").exists()


def test_a_copy_in_another_process_opens_the_shards_anew(shards, monkeypatch):
    dataset = parse_val_list(f"sharded:{shards}|ade20k")[0].open("/nowhere")
    copied = pickle.dumps(dataset)
    monkeypatch.setattr(storage, "_mounted", {})
    assert alike(pickle.loads(copied)[0], dataset[0])


def test_the_same_data_make_the_same_bytes(world, shards, write, monkeypatch, tmp_path):
    monkeypatch.setattr(shard, "MEGABYTE", 10**5)
    flags = (*FLAGS, f"--val_dataset_list={','.join(FOR_EVALUATION)}", "--shard_mb=1")
    printed = write(tmp_path / "again", f"--dataset_dir={world}", *flags)
    assert [path.name for path in sorted(shards.iterdir())] == [
        path.name for path in sorted((tmp_path / "again").iterdir())
    ]
    for path in shards.iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()
    assert f'--dataset "sharded:{tmp_path}/again|own_coco:own/things"' in printed
    assert f'--val_dataset_list "sharded:{tmp_path}/again|refcoco|unc|testA"' in printed


def test_own_data_elsewhere_keep_their_folders_but_not_what_is_above(write, tmp_path, recipe):
    drawn = content(annotation(5, [BOX]), annotation(10, [BOX], image_id=2), num_images=3)
    save_json(tmp_path / "mine" / "labels" / "boats.json", drawn)
    for number in (1, 2, 3):
        save(tmp_path / "mine" / "photos" / f"{number}.png", seeded_image(number))
    (tmp_path / "mine" / "secret.txt").write_text("a name that is nobody's business")
    name = f"own_coco:{tmp_path}/mine/labels/boats.json|exhaustive=true|images={tmp_path}/mine/photos"
    write(tmp_path / "out", f"--dataset={name}", f"--dataset_dir={tmp_path / 'none'}")
    (entry,) = parse_dataset_flags(config(dataset=f"sharded:{tmp_path / 'out'}"))
    assert str(entry).endswith("|own_coco:labels/boats.json|exhaustive=true|images=photos")
    assert not any(b"secret" in path.read_bytes() for path in (tmp_path / "out").iterdir())
    packed, on_disk = (each.open(tmp_path, training=True) for each in (entry, parse_entry(name, "--dataset")))
    assert same(
        all_of(packed, recipe, True), all_of(on_disk, recipe, True), f"{tmp_path}/out/own", f"{tmp_path}/mine"
    )


def test_what_a_name_means_is_decided_by_the_files_that_are_there_packed_or_not(write, tmp_path):
    """`a` could be a.png or a.jpg, so that its line is left out; only b.png is packed."""
    for name in ("a.png", "a.jpg", "b.png", "c.png"):
        save(tmp_path / "images" / name, seeded_image(1))
    turns = [{"from": "human", "value": "Is it?"}, {"from": "gpt", "value": "It is not."}]
    lines = [{"image": name, "conversations": turns} for name in ("a", "b", "a.png.gone")]
    (tmp_path / "talk.jsonl").write_text("\n".join(map(json.dumps, lines)))
    write(tmp_path / "out", f"--dataset=own_jsonl:{tmp_path}/talk.jsonl")
    (entry,) = parse_dataset_flags(config(dataset=f"sharded:{tmp_path}/out"))
    packed = entry.open(tmp_path, training=True)
    assert [line.path.name for line in packed.lines] == ["b.png"]
    rows = {row.name: row.shard for row in open_shards(f"{tmp_path}/out").rows if row.folder == "own/images"}
    assert rows == {"a.png": LISTED, "a.jpg": LISTED, "b.png": 0, "c.png": LISTED}


def test_entries_of_shards_are_data_sets_like_any_other(world, shards, tmp_path):
    write_ade20k(tmp_path, [blocks([1, 2])])
    flags = config(dataset=f"sem_seg||sharded:{shards}|refcoco", sem_seg_data="ade20k")
    plain, packed = parse_dataset_flags(flags)
    # The whole has the rate of its sources, and refcoco a sixth of refer_seg's 6 in it.
    assert packed.rate == pytest.approx(1 / 11)
    assert plain.rate == pytest.approx(10 / 11)
    assert not packed.needs_dataset_dir
    text = f"sharded:{shards}|refcoco|unc|testA,ade20k|train"
    assert [*open_datasets(text.split(","), tmp_path)] == text.split(",")


def test_every_data_set_says_which_files_its_items_are_read_from():
    for dataset in (*DATASETS.values(), *OWN_DATASETS.values()):
        assert dataset.files is not shard.Dataset.files, f"{dataset.name} has no files()"


def test_files_say_all_that_items_are_read_from(world, recipe):
    for name, training in ENTRIES:
        dataset = parse_entry(name, "--dataset").open(world, training=training)
        said = {str(path) for path in dataset.files()}
        with storage.recording() as asked:
            for index in range(dataset.num_items if training else len(dataset)):
                if training:
                    dataset.sample_of(index, np.random.default_rng(0), recipe)
                else:
                    dataset[index]
        assert {*asked.read} <= said, name


def test_the_index_is_written_last(world, tmp_path, monkeypatch, refused):
    monkeypatch.setattr(shard, "note_listings", lambda *given: 1 / 0)
    flags = (f"--dataset_dir={world}", "--sem_seg_data=ade20k", f"--out={tmp_path / 'out'}")
    with pytest.raises(ZeroDivisionError):
        shard.main(list(flags))
    assert not (tmp_path / "out" / INDEX).exists()
    with pytest.raises(FileNotFoundError, match=r"holds no shards: there is no .*written last"):
        open_shards(str(tmp_path / "out"))
    monkeypatch.undo()
    assert shard.main(list(flags)) == 0, "what an unfinished writing left is written over"
