"""Text files in the encodings and with the line ends that other people's tools write."""

import os

import pytest

from model.errors import UserError
from model.files import read_text, split_lines

TEXT = "sky\r\nÄpfel\r\n天空\r\n"


@pytest.mark.parametrize(
    ("encoding", "mark"),
    [
        ("utf-8", b""),
        ("utf-8", b"\xef\xbb\xbf"),
        ("utf-16-le", b"\xff\xfe"),
        ("utf-16-be", b"\xfe\xff"),
        ("utf-32-le", b"\xff\xfe\0\0"),
        ("utf-32-be", b"\0\0\xfe\xff"),
    ],
)
def test_text_is_read_in_the_encoding_that_its_mark_says(tmp_path, encoding, mark):
    (tmp_path / "a.txt").write_bytes(mark + TEXT.encode(encoding))
    assert read_text(tmp_path / "a.txt") == TEXT
    assert split_lines(TEXT) == ["sky", "Äpfel", "天空"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"ok\n" + "天空".encode("gbk"), r"byte 3 \(0xcc\) is not UTF-8; save it as UTF-8"),
        ("caf\u00e9\n".encode("cp1252"), r"byte 3 \(0xe9\) is not UTF-8"),
        ("sky\n".encode("utf-16-le"), r"byte 1 \(0x00\) belongs to no text; if this is UTF-16 without"),
        ("sky\n".encode("utf-16-be"), r"byte 0 \(0x00\) belongs to no text"),
        (b"\xff\xfes\0k\0y", r"byte order mark says UTF-16-LE, but byte 6 \(0x79\) is not"),
        (b"\xef\xbb\xbfsky\xff", r"byte 6 \(0xff\) is not UTF-8"),
    ],
)
def test_other_encodings_are_refused_with_file_byte_and_cure(tmp_path, content, message):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(UserError, match=rf"a\.txt: .*{message}") as caught:
        read_text(tmp_path / "a.txt")
    assert "iconv" in str(caught.value)


def test_an_encoding_is_assumed_only_where_a_data_set_needs_it(tmp_path):
    (tmp_path / "a.txt").write_bytes("it\u2019s".encode("cp1252"))
    assert read_text(tmp_path / "a.txt", fallback="cp1252") == "it\u2019s"
    (tmp_path / "a.txt").write_bytes("it\u2019s".encode())
    assert read_text(tmp_path / "a.txt", fallback="cp1252") == "it\u2019s"


def test_lines_end_at_newlines_alone():
    odd = "a\u2028b\u2029c\x0bd\x0ce\x85f\x1cg\rh"
    assert split_lines(f"{odd}\nnext\r\n\nlast") == [odd, "next", "", "last"]
    assert split_lines("") == []
    assert split_lines("a\n\n") == ["a", ""]


def test_a_pipe_or_a_folder_is_refused_before_it_can_block(tmp_path):
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(UserError, match=r"pipe\.txt: is a pipe or a device, not a file"):
        read_text(tmp_path / "pipe.txt")
    with pytest.raises(UserError, match="is a folder, not a file"):
        read_text(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_text(tmp_path / "missing.txt")
