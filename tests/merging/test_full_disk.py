"""A merge onto a disk that is full or read-only at any write: one line, exit code 2, nothing left."""

from __future__ import annotations

import pytest

from merge_lora_weights_and_save_hf_model import main
from tests.failing_writes import files_in, small_disk, watched_writes


@pytest.mark.parametrize("layout", ["lasagna", "lisa"])
def test_a_write_that_fails_is_one_line_and_leaves_nothing(layout, arguments, tmp_path, capsys):
    arguments, out = [*arguments, "--layout", layout], tmp_path / "out"
    with watched_writes(out) as writes:
        assert main(arguments) == 0
    for path in sorted(out.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    for number in range(1, writes.count, max(writes.count // 5, 1)):  # a merge takes a second
        capsys.readouterr()
        with watched_writes(out, number) as failing:
            code = main(arguments)
        lines = [line for line in capsys.readouterr().err.splitlines() if "B/s" not in line]
        assert (code, lines[-1:]) == (2, lines[-1:]), failing.failed
        told = lines[-1]
        assert str(out) in told, (failing.failed, told)
        assert ".unfinished" not in told
        assert ".frame-" not in told
        assert not any("Traceback" in line for line in lines)
        assert files_in(out) == {}, failing.failed


def test_a_disk_that_is_really_full(arguments, tmp_path, capsys, monkeypatch):
    # What is free is asked before; here it is told wrongly, as when somebody else fills the disk meanwhile.
    monkeypatch.setattr("shutil.disk_usage", lambda place: type("usage", (), {"free": 1 << 40}))
    out = tmp_path / "out"
    for kilobytes in (4, 64, 256, 512, 1024):
        with small_disk(out, kilobytes):
            capsys.readouterr()
            code = main(arguments)
            lines = capsys.readouterr().err.splitlines()
            if code == 0:
                break
            assert code == 2
            assert "cannot be written (No space left on device)" in lines[-1], (kilobytes, lines)
            assert files_in(out) == {}
    assert kilobytes > 64
