"""The cache of indexes: never stale, built once, and never in the way."""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from model.errors import UserError
from tests.utils.data.coco_files import BOX, annotation, content, training, write
from tests.utils.data.layouts import save, save_json, seeded_image
from utils.data import files
from utils.data.index import cache, sources
from utils.data.index.cache import cache_folder as folder_of_cache
from utils.data.index.cache import open_index
from utils.data.index.rows import MAGIC, PREFIX_SIZE, DamagedIndexError, RowFile, Rows, write_rows
from utils.data.index.sources import read_source


@dataclass(frozen=True)
class Word:
    text: str
    places: tuple[int, ...]
    more: Any = None


@dataclass(frozen=True)
class Facts:
    num_words: int


def words_of(path, times=None):
    """An index of the words of a file; each building of it is a byte more in `times`."""

    def build():
        if times is not None:
            with open(times, "ab") as file:
                file.write(b".")
        words = read_source(path).decode().split()
        return [Word(word, (place,), [place / 3]) for place, word in enumerate(words)], Facts(len(words))

    return open_index(("Words", "train", str(path)), (Word, Facts), [path], build)


def texts(index):
    return [word.text for word in index.items]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("red green blue")
    return path


@pytest.fixture
def coco(tmp_path):
    return write(tmp_path / "data", content(annotation(5, [BOX]), annotation(10, [BOX], 2), num_images=2))


def count_builds(monkeypatch):
    """The names of the annotation files that are read, as they are read."""
    read = []
    monkeypatch.setattr(files, "read_source", lambda path: read.append(Path(path).name) or read_source(path))
    return read


def test_the_index_is_built_at_the_first_opening_alone(coco, cache_folder, monkeypatch):
    read = count_builds(monkeypatch)
    for _ in range(3):
        assert len(training(coco)) == 2
    assert read == ["boats.json"]


@pytest.mark.parametrize("is_settled", [True, False])
def test_a_change_of_the_same_size_and_time_is_seen(coco, cache_folder, monkeypatch, is_settled):
    if is_settled:  # as if nothing had been written in the last seconds
        monkeypatch.setattr(sources, "YOUNG", -(10**18))
    assert list(training(coco).classes) == ["boat", "traffic light", "gull"]
    times = os.stat(coco)
    coco.write_text(coco.read_text().replace("Boat", "Goat"))
    os.utime(coco, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert list(training(coco).classes) == ["goat", "traffic light", "gull"]


def test_a_copy_with_other_times_is_not_read_again(coco, cache_folder, monkeypatch):
    training(coco)
    read = count_builds(monkeypatch)
    written = coco.read_bytes()
    coco.unlink()
    coco.write_bytes(written)
    training(coco)
    assert read == []


def test_images_that_come_and_go_are_seen(coco, cache_folder):
    assert len(training(coco)) == 2
    image = coco.parent / "2.png"
    image.rename(coco.parent / "gone.png")
    assert [item.path.name for item in training(coco).items] == ["1.png"]
    image.symlink_to(coco.parent / "gone.png")
    assert len(training(coco)) == 2
    images = coco.parent / "images"  # a likelier folder appears, and has them all
    for number in (1, 2):
        (coco.parent / f"{number}.png").unlink()
        save(images / f"{number}.png", seeded_image(number))
    assert {item.path.parent for item in training(coco).items} == {images}


def test_other_flags_have_indexes_of_their_own(coco, cache_folder, monkeypatch):
    training(coco)
    assert training(coco, "exhaustive=true").items[0].absent == (1, 2)
    assert training(coco).items[0].absent == ()
    monkeypatch.chdir(coco.parent)
    assert training("boats.json").items[0].path == Path("1.png")
    assert len(list(cache_folder.glob("*.index"))) == 3


def test_code_that_reads_otherwise_builds_anew(coco, cache_folder, monkeypatch):
    training(coco)
    read = count_builds(monkeypatch)
    monkeypatch.setattr(cache, "digest_of_code", lambda: b"other")
    training(coco)
    training(coco)
    assert read == ["boats.json"]


def test_errors_of_the_data_are_those_without_a_cache_and_leave_nothing(tmp_path, cache_folder, monkeypatch):
    path = tmp_path / "boats.json"
    for text in ('{"images": [', "[]", '{"images": [], "annotations": [], "categories": [{"id": 1}]}'):
        path.write_text(text)
        with pytest.raises(UserError) as cached:
            training(path)
        monkeypatch.setattr(cache, "_place", cache.OFF)
        with pytest.raises(UserError) as plain:
            training(path)
        monkeypatch.setattr(cache, "_place", str(cache_folder))
        assert str(cached.value) == str(plain.value)
    assert list(cache_folder.glob("*.index*")) == []


DAMAGES = {
    "empty": lambda content: b"",
    "cut in the prefix": lambda content: content[: PREFIX_SIZE - 3],
    "cut off": lambda content: content[:-5],
    "longer": lambda content: content + b"x",
    "a byte of the rows": lambda content: content[: PREFIX_SIZE + 2] + b"\xff" + content[PREFIX_SIZE + 3 :],
    "a byte of the head": lambda content: content[:-9] + bytes([content[-9] ^ 1]) + content[-8:],
    "a byte of the checksum": lambda content: content[:40] + bytes([content[40] ^ 1]) + content[41:],
    "huge counts": lambda content: MAGIC + struct.pack("<QQQ", 2**63, 2**61, 2**63) + content[32:],
    "counts that wrap around": lambda content: MAGIC + struct.pack("<QQQ", 2**64 - 8, 0, 40) + content[32:],
    "a page of the web": lambda content: b"<!DOCTYPE html>" * 50,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_replaced_with_one_line(damage, file, cache_folder, caplog):
    caplog.set_level(logging.WARNING)
    words_of(file)
    (path,) = cache_folder.glob("*.index")
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    assert texts(words_of(file)) == ["red", "green", "blue"]
    assert len(caplog.records) == 1
    assert "built anew, as it is damaged" in caplog.text
    caplog.clear()
    assert isinstance(words_of(file).items, Rows)
    assert not caplog.records


def forged(path, items, head=None):
    write_rows(path, items, head)
    return RowFile(path)


def test_a_forged_file_with_a_right_checksum_is_no_danger(tmp_path):
    offsets = [0, 2**62, 3]
    path = tmp_path / "forged"
    forged(path, [Word("a", (1,)), Word("b", (2,))])
    file = RowFile(path)
    written = bytearray(path.read_bytes())
    struct.pack_into("<3q", written, file.offsets_at, *offsets)
    path.write_bytes(written)
    with pytest.raises(DamagedIndexError, match="follow"):
        RowFile(path).offsets()
    other = Rows(forged(path, [{"text": 3, "places": "x"}, {"__reduce__": ["os.system", ["true"]]}]), Word)
    for position in range(2):
        with pytest.raises(UserError, match="--index_cache none"):
            other[position]
    with pytest.raises(UserError):
        Rows(forged(path, [[]]), Word)[0]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DamagedIndexError):
        RowFile(path)


def test_rows_hold_every_number_and_text_exactly(tmp_path):
    values = [
        0.1,
        1e308,
        -0.0,
        5e-324,
        float("inf"),
        2**63,
        -(2**63),
        2**64 - 1,
        True,
        None,
        "é😀",
        b"\0",
        {"a": []},
    ]
    items = [Word("", (), value) for value in values] + [Word("", (), float("nan"))]
    rows = Rows(forged(tmp_path / "rows", items), Word)
    assert [repr(row) for row in rows] == [repr(item) for item in items]
    assert rows[-1:][0].more != rows[-1].more  # not a number
    assert repr(rows[:3]) == repr(items[:3])
    with pytest.raises(IndexError):
        rows[len(items)]


def test_what_cannot_be_kept_stays_in_memory(file, cache_folder, caplog):
    def build():
        return [Word("a", (1,), 2**64)], Facts(1)

    index = open_index(("Words", "train"), (Word, Facts), [file], build)
    assert index.items[0].more == 2**64
    assert "stays in the memory" in caplog.text
    assert list(cache_folder.glob("*.index*")) == []


def test_small_files_and_none_leave_the_cache_alone(file, cache_folder, monkeypatch):
    monkeypatch.setattr(cache, "MIN_BYTES", 100)
    assert isinstance(words_of(file).items, list)
    monkeypatch.setattr(cache, "MIN_BYTES", 0)
    monkeypatch.setattr(cache, "_place", "none")
    assert isinstance(words_of(file).items, list)
    assert not cache_folder.exists()


def test_the_folder_is_the_users_own_unless_it_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(cache, "_place", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert folder_of_cache() == tmp_path / "lasagna" / "index"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # to be ignored, says the specification
    monkeypatch.setenv("HOME", str(tmp_path))
    assert folder_of_cache() == tmp_path / ".cache" / "lasagna" / "index"


def test_a_folder_that_cannot_be_written_is_told_once(file, tmp_path, cache_folder, monkeypatch, caplog):
    caplog.set_level(logging.WARNING)
    (tmp_path / "blocked").write_text("")
    monkeypatch.setattr(cache, "_place", str(tmp_path / "blocked" / "cache"))
    for _ in range(2):
        assert texts(words_of(file)) == ["red", "green", "blue"]
    assert len(caplog.records) == 1
    assert "--index_cache" in caplog.text


def test_an_index_in_a_folder_that_became_read_only_is_used(file, cache_folder, monkeypatch):
    words_of(file)
    monkeypatch.setattr(cache, "_alone", None)  # asking for the lock would be an error
    assert isinstance(words_of(file).items, Rows)


def _open_in_another(path, times, folder, out):
    cache.MIN_BYTES, cache._place = 0, folder
    out.put(texts(words_of(path, times)))


def _die_while_building(path, folder):
    cache.MIN_BYTES, cache._place = 0, folder

    def build():
        os._exit(9)

    open_index(("Words", "train", str(path)), (Word, Facts), [path], build)


def test_many_processes_build_once_and_a_dead_one_hinders_nobody(file, tmp_path, cache_folder):
    fork = multiprocessing.get_context("fork")
    dead = fork.Process(target=_die_while_building, args=(file, str(cache_folder)))
    dead.start()
    dead.join(60)
    out, times = fork.Queue(), tmp_path / "times"
    arguments = (file, times, str(cache_folder), out)
    processes = [fork.Process(target=_open_in_another, args=arguments) for _ in range(4)]
    for process in processes:
        process.start()
    found = [out.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(60)
    assert found == [["red", "green", "blue"]] * 4
    assert times.read_bytes() == b"."


def test_a_pickled_index_reads_the_same_file(file, cache_folder):
    rows = words_of(file).items
    copy = pickle.loads(pickle.dumps(rows))  # what a spawned worker gets
    assert list(copy) == list(rows)
    assert len(pickle.dumps(rows)) < 1000
    sent = pickle.dumps(rows)
    file.write_text("other words")
    words_of(file)
    assert texts(words_of(file)) == ["other", "words"]
    assert rows[0].text == "red"  # whoever has the old file open keeps it
    with pytest.raises(UserError, match="was replaced"):
        pickle.loads(sent)


def test_a_file_that_is_cut_off_in_use_is_an_error_and_not_the_end(file, cache_folder):
    rows = words_of(file).items
    os.truncate(rows.file.path, PREFIX_SIZE + 1)
    with pytest.raises(UserError, match="cut off"):
        rows[0]


TEXTS = (
    *(
        '{"a": NaN}',
        '{"a": 1e400}',
        '{"a": 18446744073709551617}',
        '{"a": 1, "a": 2}',
        '{"a": -0}',
        '{"a": 01}',
    ),
    *(
        '{"a": "\\ud83d\\ude00"}',
        '{"a": "\\ud83d"}',
        '{"a": "\t"}',
        '{"a": 1} x',
        "{",
        "",
        "null",
        "[" * 5000,
    ),
    *('{"a": 0.1000000000000000055511151231257827}', '\ufeff{"a": 1}'),
)


def test_large_files_are_read_as_small_ones(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    for text in TEXTS:
        path.write_text(text, encoding="utf-8")
        results = []
        for large in (10**9, 0):
            monkeypatch.setattr(files, "LARGE", large)
            try:
                results.append(repr(files.read_annotations(path)))
            except UserError as problem:
                results.append(str(problem))
        assert results[0] == results[1], text
    save_json(path, {"a": [1.5]})
    assert files.read_annotations(path) == {"a": [1.5]}
