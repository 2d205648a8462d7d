"""The report for bug reports: what is in it, and what must not be."""

import platform
import re
import subprocess
import tomllib
from importlib.metadata import version

from packaging.requirements import Requirement

from utils.common import environment as env


def test_the_report_says_what_runs_where(capsys):
    assert env.main([]) == 0
    text = capsys.readouterr().out
    facts = dict(line.split(None, 1) for line in text.splitlines() if "  " in line)
    assert facts["python"].startswith(platform.python_version())
    assert facts["torch"].startswith(version("torch"))
    requirements = (env.REPOSITORY / "requirements.txt").read_text().splitlines()
    names = [line.split(">=")[0] for line in requirements if line and not line.startswith("#")]
    assert len(names) > 10
    assert all(name in facts for name in names)
    assert facts["safetensors"].startswith(version("safetensors"))
    assert "flash-attn" in facts
    assert all(len(line) <= 100 for line in text.splitlines())


def test_nothing_private_is_in_it(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecret")
    monkeypatch.setenv("USER", "somebodysecret")
    monkeypatch.setenv("HOME", "/home/somebodysecret")
    monkeypatch.chdir(tmp_path)
    text = env.report()
    assert "secret" not in text
    assert not re.search(r"(^|[\s(])[/~]\w", text)  # no folder at all
    assert "\\" not in text


def test_missing_parts_are_said_not_raised(monkeypatch, tmp_path):
    def fail(*arguments, **kwargs):
        raise subprocess.CalledProcessError(128, "git")

    monkeypatch.setattr(env.subprocess, "run", fail)
    monkeypatch.setattr(env, "MEMORY", tmp_path / "absent")
    monkeypatch.setattr(env, "OPTIONAL", ("no-such-package",))
    text = env.report()
    assert "not a git checkout" in text
    assert "unknown" in text
    assert "not installed (optional)" in text


def test_an_argument_is_refused(capsys):
    assert env.main(["--json"]) == 2
    assert "takes no arguments" in capsys.readouterr().err


def test_readme_and_project_ask_for_the_same_python():
    project = tomllib.loads((env.REPOSITORY / "pyproject.toml").read_text())["project"]
    least = project["requires-python"].removeprefix(">=")
    assert f"Python {least} or newer" in (env.REPOSITORY / "README.md").read_text()


def read_requirements(name: str) -> dict[str, Requirement]:
    lines = (env.REPOSITORY / name).read_text().splitlines()
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {one.name.lower(): one for one in found}


def test_the_locked_versions_are_within_the_bounds_of_everything_that_is_asked_for():
    lock = read_requirements("requirements.lock")
    extras = tomllib.loads((env.REPOSITORY / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    asked = [Requirement(line) for lines in extras.values() for line in lines]
    tests = read_requirements("tests/requirements.txt")
    for one in (*read_requirements("requirements.txt").values(), *tests.values(), *asked):
        assert str(one.specifier).startswith(">="), one
        if one.name.lower() in lock:
            pinned = str(lock[one.name.lower()].specifier).removeprefix("==")
            assert one.specifier.contains(pinned), f"{one}, locked {pinned}"
    for one in asked:  # what the tests ran with
        assert one.specifier == tests.get(one.name.lower(), one).specifier, one


def test_the_page_about_versions_states_the_bounds_of_the_requirements():
    text = (env.REPOSITORY / "docs/versions.md").read_text()
    rows = re.findall(r"^\| ([\w, -]+) \| ([\d., ]+) \|", text.split("## Why not older")[1], re.MULTILINE)
    stated = {
        name: least
        for names, bounds in rows
        for name, least in zip(names.lower().split(", "), bounds.split(", "), strict=True)
    }
    project = tomllib.loads((env.REPOSITORY / "pyproject.toml").read_text())["project"]
    assert stated.pop("python") == project["requires-python"].removeprefix(">=")
    bounds = read_requirements("requirements.txt")
    assert len(stated) > 5
    assert stated == {name: str(bounds[name].specifier).removeprefix(">=") for name in stated}
