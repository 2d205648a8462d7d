"""Two runs never share a folder; a lock whose process is gone is taken over."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from functools import partial

import pytest

from model.errors import UserError
from tests.commands import REPOSITORY, complaint, run
from utils.common.folder_lock import EVALUATION_LOCK, RUN_LOCK, folder_lock
from utils.common.processes import start_of

run_lock = partial(folder_lock, name=RUN_LOCK, flag="--exp_name")


@pytest.fixture
def other():
    """Another process that is alive."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.stdin.close()


def leave_lock(folder, /, pid: int, name: str = RUN_LOCK, **changes) -> None:
    holder = {
        "host": socket.gethostname(),
        "pid": pid,
        "start": start_of(pid),
        "since": "2026-01-01 00:00:00",
    }
    folder.mkdir()
    (folder / name).write_text(json.dumps(holder | changes))


def test_a_run_in_use_is_refused_by_name_and_stays_locked(other, tmp_path):
    leave_lock(tmp_path / "run", other.pid)
    with (
        pytest.raises(UserError, match=f"in use by process {other.pid} on host .*--exp_name"),
        run_lock(tmp_path / "run"),
    ):
        pass
    assert (tmp_path / "run" / "run.lock").exists()


def test_an_evaluation_is_told_about_its_own_folder(other, tmp_path):
    leave_lock(tmp_path / "report", other.pid, name=EVALUATION_LOCK)
    for _ in range(2):
        with (
            pytest.raises(UserError, match=r"evaluation\.lock.*--report_dir"),
            folder_lock(tmp_path / "report", EVALUATION_LOCK, "--report_dir"),
        ):
            pass


@pytest.mark.parametrize("flag", ["--report_dir", "--save_predictions"])
def test_a_second_evaluation_into_the_same_folder_is_refused_before_it_reads_anything(
    flag, other, tmp_path, capsys
):
    leave_lock(tmp_path / "out", other.pid, name=EVALUATION_LOCK)
    (tmp_path / "out" / "finished").mkdir()
    assert run("test_sem", "--version=nowhere", flag, tmp_path / "out") == 2
    complaint(capsys, f"in use by process {other.pid}", f"choose another {flag}")
    assert (tmp_path / "out" / "finished").exists()


@pytest.mark.parametrize("case", ["gone", "number used again", "empty", "cut off"])
def test_a_lock_whose_process_is_gone_is_taken_over(case, other, tmp_path):
    folder = tmp_path / "run"
    if case == "gone":
        other.stdin.close()
        other.wait()
    leave_lock(folder, other.pid, **({"start": "another boot/1"} if case == "number used again" else {}))
    if case in ("empty", "cut off"):
        (folder / "run.lock").write_text("" if case == "empty" else '{"host": "')
    with run_lock(folder):
        assert json.loads((folder / "run.lock").read_text())["pid"] == os.getpid()
    assert not (folder / "run.lock").exists()


def test_a_lock_of_another_host_is_named(tmp_path):
    leave_lock(tmp_path / "run", 1, host="node17")
    told = r"on host node17, since 2026.*if it has ended, delete .*run\.lock"
    with pytest.raises(UserError, match=told), run_lock(tmp_path / "run"):
        pass


@pytest.mark.parametrize("content", [b"\xff\xfe\x80", b"[" * 100_000, b'{"pid": 1e999}', b"null"])
def test_a_lock_that_nobody_wrote_is_taken_over(content, tmp_path):
    (tmp_path / "run.lock").write_bytes(content)
    with run_lock(tmp_path):
        assert json.loads((tmp_path / "run.lock").read_text())["pid"] == os.getpid()


@pytest.mark.parametrize("put", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)])
def test_what_is_no_file_is_no_lock(put, tmp_path):
    put(tmp_path / "run.lock")
    with (
        pytest.raises(UserError, match=r"run\.lock: is a .*, not a file; move it elsewhere"),
        run_lock(tmp_path),
    ):
        pass


def test_a_run_that_wrote_nothing_leaves_nothing(tmp_path):
    with run_lock(tmp_path / "runs" / "a"):
        assert (tmp_path / "runs" / "a" / "run.lock").exists()
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_ends_from_another_thread_leaves_no_lock(tmp_path):
    """As one whose peer has died does, while its main thread waits for that one."""
    code = f"""
import threading, time
from pathlib import Path
from utils.common.processes import end_now
from utils.common.folder_lock import folder_lock
with folder_lock(Path({str(tmp_path / "run")!r}), "run.lock", "--exp_name"):
    assert Path({str(tmp_path / "run" / "run.lock")!r}).exists()
    threading.Thread(target=end_now, args=(4,)).start()
    time.sleep(60)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=False, timeout=60)
    assert done.returncode == 4
    assert not (tmp_path / "run" / "run.lock").exists()


@pytest.mark.parametrize("host", [None, "node17"])
def test_a_copy_beside_its_original_is_free_while_the_original_is_in_use(host, other, tmp_path):
    original, copy = tmp_path / "run", tmp_path / "copy"
    changes = {"folder": str(original)} | ({"host": host} if host else {})
    leave_lock(original, other.pid, **changes)
    shutil.copytree(original, copy)
    with run_lock(copy):
        assert json.loads((copy / "run.lock").read_text())["pid"] == os.getpid()
    (tmp_path / "link").symlink_to(original)
    for same in (original, tmp_path / "link"):
        with pytest.raises(UserError, match="in use by process"), run_lock(same):
            pass


def test_a_folder_that_was_moved_while_it_is_in_use_stays_locked(other, tmp_path):
    leave_lock(tmp_path / "run", other.pid, folder=str(tmp_path / "run"))
    (tmp_path / "run").rename(tmp_path / "moved")
    with pytest.raises(UserError, match="in use by process"), run_lock(tmp_path / "moved"):
        pass
    leave_lock(tmp_path / "run", other.pid, folder=str(tmp_path / "run"), since="a later run of that name")
    with pytest.raises(UserError, match="in use by process"), run_lock(tmp_path / "moved"):
        pass


@pytest.mark.parametrize("place", [5, "", "/dev", "\0", ["x"], None, "x" * 5000])
def test_a_lock_with_another_place_is_a_lock(place, other, tmp_path):
    leave_lock(tmp_path / "run", other.pid, folder=place)
    with pytest.raises(UserError, match="in use by process"), run_lock(tmp_path / "run"):
        pass
