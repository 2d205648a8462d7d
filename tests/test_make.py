"""What the Makefile installs, with a stand-in for Python that writes down what it is asked."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.commands import REPOSITORY

FILES = ("Makefile", "requirements.txt", "requirements.lock")
INDEX = "https://example.org/cpu"
# `-m venv FOLDER` gives itself as python and uv; `unreachable` in its folder makes an index of its own fail.
STAND_IN = """#!/bin/sh
echo "$@" >> {here}/asked
if [ "$2" = venv ]; then mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && cp "$0" "$3/bin/uv"; fi
case "$*" in *--index-url*) [ ! -e {here}/unreachable ] || exit 1 ;; esac
"""


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """A folder with what the Makefile reads, and the stand-in."""
    for name in FILES:
        shutil.copy(REPOSITORY / name, tmp_path)
    (tmp_path / "tests").mkdir()
    for path in (REPOSITORY / "tests").glob("requirements*.txt"):
        shutil.copy(path, tmp_path / "tests")
    python = tmp_path / "stand_in"
    python.write_text(STAND_IN.format(here=tmp_path))
    python.chmod(0o755)
    return tmp_path


def make(desk: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`make` there; the environment's own settings do not count."""
    command = ["make", "--directory", str(desk), "PYTHON=./stand_in", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env={"PATH": "/usr/bin:/bin"})


def asked(desk: Path) -> list[str]:
    return (desk / "asked").read_text().splitlines()


def test_the_locked_versions_are_installed_once(desk):
    assert make(desk, "setup").returncode == 0
    assert [line.split()[-1] for line in asked(desk)] == [
        *(".venv", "requirements.lock", "tests/requirements-nodeps.txt")
    ]
    assert not any("index" in line for line in asked(desk))
    before = asked(desk)
    assert make(desk, "setup").returncode == 0
    assert asked(desk) == before


@pytest.mark.parametrize(
    ("arguments", "index"),
    [(("TORCH=cpu",), "https://download.pytorch.org/whl/cpu"), ((f"TORCH_INDEX={INDEX}",), INDEX)],
)
def test_torch_comes_from_the_index_alone_and_first(desk, arguments, index):
    assert make(desk, "setup", *arguments).returncode == 0
    _, torch, lock, _ = asked(desk)
    assert "requirements.lock" in lock
    pins = re.findall(r"^torch(?:vision)?==.*$", (REPOSITORY / "requirements.lock").read_text(), re.MULTILINE)
    assert len(pins) == 2
    # The build's name is in the version, so that no other index, from pip's own settings, can give another build.
    assert torch.endswith(" ".join(("--no-deps --index-url", index, *(f"{pin}+cpu" for pin in pins))))


def test_an_index_that_does_not_answer_is_told_and_nothing_else_is_installed(desk):
    (desk / "unreachable").touch()
    found = make(desk, "setup", f"TORCH_INDEX={INDEX}")
    assert found.returncode == 2
    assert f"TORCH_INDEX={INDEX} does not answer, or does not have torch==" in found.stderr
    assert "leave TORCH and TORCH_INDEX out" in found.stderr
    assert len(asked(desk)) == 2
    assert not (desk / ".venv" / "ready").exists()


@pytest.mark.parametrize(("which", "resolution"), [("lowest", "lowest-direct"), ("newest", "highest")])
def test_lowest_and_newest_are_tested_in_environments_of_their_own(desk, which, resolution):
    assert make(desk, f"test-{which}").returncode == 0
    lines = asked(desk)
    assert lines[0] == f"-m venv .venv-{which}"
    assert lines[1].endswith(" uv")
    assert "-r requirements.txt -r tests/requirements.txt" in lines[2]
    assert lines[2].endswith(f"--resolution {resolution}")
    assert "-m pytest" in lines[-1]
    assert not (desk / ".venv").exists()
