"""A disk that is full or read-only at any write: one line, exit code 2, and no half file under a final name."""

from __future__ import annotations

import contextlib
import shutil
import sys
from pathlib import Path

import pytest

import chat
import test_sem as evaluation_script
from tests.failing_writes import assert_whole, files_in, small_disk, watched_writes
from tests.test_evaluation_scripts import knowing, scenes, street  # noqa: F401
from tests.utils.data.layouts import blocks, dialogue, write_ade20k, write_llava
from utils.data.tools import preview
from utils.toy import world

pytestmark = pytest.mark.usefixtures("knowing", "scenes")


def evaluation(out: Path, street: Path) -> int:  # noqa: F811
    flags = ["--version=any", "--val_dataset_list=ade20k", f"--report_dir={out / 'r'}"]
    return evaluation_script.main([*flags, f"--vis_save_path={out / 'v'}", f"--save_predictions={out / 'p'}"])


def prediction(out: Path, street: Path) -> int:  # noqa: F811
    classes = street.with_name("classes.txt")
    classes.write_text("grass\ndog\nsky\n")
    flags = ["--version=any", f"--images={street}", f"--classes={classes}"]
    return evaluation_script.main([*flags, f"--save_predictions={out}"])


def answer(out: Path, street: Path) -> int:  # noqa: F811
    return chat.main(["--version=any", f"--image={street}", "--classes=sky, dog", f"--vis_save_path={out}"])


def look(out: Path, street: Path) -> int:  # noqa: F811
    root = street.with_name("data")
    if not root.exists():
        write_ade20k(root, [blocks([k, k + 1]) for k in range(1, 3)])
        write_llava(root, [dialogue("1.jpg", "What?", "A ball.")])
    return preview.main([f"--dataset_dir={root}", "--num_samples=2", f"--out={out / 'a' / 'b'}"])


def toy_world(out: Path, street: Path) -> int:  # noqa: F811
    return world.main([f"--out={out / 'world'}", "--num_images=1", "--layouts=openimage,own"])


COMMANDS = {
    "evaluation": evaluation,
    "prediction": prediction,
    "chat": answer,
    "preview": look,
    "toy world": toy_world,
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_write_that_fails_is_one_line_and_leaves_no_half_file(name, street, tmp_path, capsys):  # noqa: F811
    command, out = COMMANDS[name], tmp_path / "out"
    with watched_writes(out) as writes:
        assert command(out, street) == 0
    assert writes.count > 3
    complete = files_in(out)
    step = max(writes.count // 20, 1)  # of the many alike of a toy world, some
    for number in range(0, writes.count, step):
        shutil.rmtree(out)
        capsys.readouterr()
        with watched_writes(out, number) as failing:
            code = command(out, street)
        lines = [line for line in capsys.readouterr().err.split("\n") if line and "%|" not in line]
        assert (code, len(lines)) == (2, 1), (failing.failed, code, lines)
        assert str(out) in lines[0], (failing.failed, lines)
        assert "partial" not in lines[0]
        assert "rrno" not in lines[0]
        out.mkdir(exist_ok=True)
        assert_whole(out, complete)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_disk_that_is_really_full(name, street, tmp_path, capsys):  # noqa: F811
    command, out = COMMANDS[name], tmp_path / "disk"
    with small_disk(out, 1 << 16):
        assert command(out, street) == 0
        complete = files_in(out)
    total = sum(len(content) for content in complete.values()) // 1024
    for kilobytes in sorted({4, 16, total // 2}):
        with small_disk(out, max(kilobytes, 4)):
            capsys.readouterr()
            code = command(out, street)
            lines = [line for line in capsys.readouterr().err.split("\n") if line and "%|" not in line]
            assert (code, len(lines)) == (2, 1), (kilobytes, lines)
            assert "No space left" in lines[0]
            assert_whole(out, complete)


def test_output_that_goes_to_a_full_disk_is_one_line_as_well(street, tmp_path, capsys, monkeypatch):  # noqa: F811
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert toy_world(tmp_path, street) == 2
        monkeypatch.undo()
        with contextlib.suppress(OSError):
            full.close()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "the output cannot be written (No space left on device); make room" in lines[0]
