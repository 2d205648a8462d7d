"""Files are written aside: whole or not at all, also when two processes write the same one."""

from __future__ import annotations

import os

import pytest

from model.errors import UserError
from utils.common.files import write_whole, written_aside


def test_two_writers_of_one_file_never_mix(tmp_path):
    path = tmp_path / "page.html"
    with written_aside(path) as one:
        one.write_text("one " * 1000)
        with written_aside(path) as other:
            assert other != one
            other.write_text("other")
        assert path.read_text() == "other"
        assert one.read_text() == "one " * 1000
    assert path.read_text() == "one " * 1000
    assert os.listdir(tmp_path) == ["page.html"]


def test_what_a_killed_process_left_is_taken_over(tmp_path):
    (tmp_path / "page.html.partial").write_text("a long half of a page")
    write_whole(tmp_path / "page.html", "short")
    assert (tmp_path / "page.html").read_text() == "short"
    assert os.listdir(tmp_path) == ["page.html"]


@pytest.mark.parametrize("put", [os.mkfifo, os.mkdir])
def test_what_is_no_file_is_not_written_to(put, tmp_path):
    put(tmp_path / "page.html.partial")
    with pytest.raises(UserError, match=r"page\.html\.partial: is a .*, not a file; move it elsewhere"):
        write_whole(tmp_path / "page.html", "text")
