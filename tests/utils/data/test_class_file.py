"""Class files as people and tools write them."""

import numpy as np
import pytest

from model.errors import UserError
from utils.common.label_values import IGNORE, NOTHING, UNDEFINED
from utils.data.class_file import read_class_file
from utils.data.class_lists import ClassList

NAMES = ["sky", "Gras\u00df", "\u5929\u7a7a", "caf\u00e9"]


def read(tmp_path, text, encoding="utf-8"):
    (tmp_path / "classes.txt").write_bytes(text.encode(encoding))
    return read_class_file(tmp_path / "classes.txt")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_encodings_with_a_mark_and_both_line_ends_are_read(tmp_path, encoding, end):
    file = read(tmp_path, "".join(name + end for name in NAMES), encoding)
    assert list(file.classes) == NAMES
    assert file.values == (0, 1, 2, 3)


@pytest.mark.parametrize("encoding", ["gbk", "cp1252", "utf-16-le", "shift_jis"])
def test_other_encodings_are_refused_not_guessed(tmp_path, encoding):
    name = {"cp1252": "caf\u00e9", "utf-16-le": "sky"}.get(encoding, "\u5929\u7a7a")
    with pytest.raises(UserError, match=r"classes\.txt: byte \d+ \(0x\w\w\) .*iconv"):
        read(tmp_path, f"{name}\n", encoding)


@pytest.mark.parametrize(
    "odd", ["\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u2029", "\x00", "\x1b", "\r", "\x7f"]
)
@pytest.mark.parametrize("text", ["blue{}sky\ntree\n", "sky{}\ntree\n", "{}sky\ntree\n"])
def test_control_characters_are_neither_line_ends_nor_names(tmp_path, odd, text):
    if (odd, text) == ("\r", "sky{}\ntree\n"):
        assert list(read(tmp_path, text.format(odd)).classes) == ["sky", "tree"]
        return
    with pytest.raises(UserError, match=r"control character U\+|belongs to no text"):
        read(tmp_path, text.format(odd))


def test_control_characters_are_refused_in_any_class_list():
    with pytest.raises(UserError, match=r"labels\.json: 'a\\x07b' holds the control character U\+0007"):
        ClassList(["a\x07b"], ["a b"], "labels.json")
    with pytest.raises(UserError, match=r"U\+D800"):
        ClassList(["a\ud800"], ["a"], "labels.json")


@pytest.mark.parametrize(
    ("ignore", "nothing"), [("ignore", "nothing"), ("Ignore", "Nothing"), ("IGNORE ", " NOTHING")]
)
def test_the_words_that_are_no_classes_are_read_in_any_case(tmp_path, ignore, nothing):
    file = read(tmp_path, f"{ignore}\nball\n{nothing}\nbox\n")
    assert list(file.classes) == ["ball", "box"]
    assert file.values == (1, 3)
    assert file.id_table[:5].tolist() == [IGNORE, 0, NOTHING, 1, UNDEFINED]


@pytest.mark.parametrize("first", ["__ignore__", "__IGNORE__"])
def test_labelmes_list_counts_from_minus_one(tmp_path, first):
    """labelme writes value 0 for _background_ and 255, a byte of -1, for __ignore__."""
    file = read(tmp_path, f"{first}\n_background_\nball\nbox\n")
    assert list(file.classes) == ["ball", "box"]
    assert (file.first_value, file.values) == (-1, (1, 2))
    assert file.id_table[:4].tolist() == [NOTHING, 0, 1, UNDEFINED]
    assert file.id_table[255] == IGNORE
    file = read(tmp_path, f"{first}\nball\nbox\n")
    assert file.values == (0, 1)
    file = read(tmp_path, "_background_\nball\n")
    assert (file.first_value, file.values) == (0, (1,))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ball\n__ignore__\n", "line 2: __ignore__ has a meaning only in line 1"),
        ("__ignore__\nball\n__Ignore__\n", "line 3: __ignore__ has a meaning only in line 1.*label value 1"),
        ("__ignore__\n", "no classes"),
        ("ball\tignore\n", "line 1: .* has a name beside a word that is not a class"),
        ("Nothing\tball\n", "has a name beside a word"),
        ("0\tball\tround\n", "has 3 columns"),
        ("ball\t\n", "names no class for label value 0"),
        ("ball\n # mine\nbox\n", "line 2: '# mine' names no class for label value 1"),
        ("__ignore__\nball\n\nbox\n", "line 3: '' names no class for label value 1"),
        ("caf\u00e9\ncafe\u0301\n", "have the same name"),
    ],
)
def test_lines_that_could_mean_two_things_are_refused(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        read(tmp_path, text)


@pytest.mark.parametrize(
    ("name", "word"),
    [("background", "nothing"), ("__background__", "nothing"), ("Void", "ignore"), ("unlabeled", "ignore")],
)
def test_names_that_are_probably_no_classes_are_pointed_out_not_guessed(tmp_path, caplog, name, word):
    assert list(read(tmp_path, f"{name}\nball\n").classes) == [name, "ball"]
    assert f"{name!r} is asked for like any other class; write {word!r} if it is not one" in caplog.text


def test_empty_lines_at_the_end_are_no_lines(tmp_path):
    file = read(tmp_path, "ball\nbox\n\n  \n")
    assert file.values == (0, 1)
    assert np.flatnonzero(file.id_table == UNDEFINED)[0] == 2
