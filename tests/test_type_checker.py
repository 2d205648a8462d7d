"""The type checker of `make lint` reads everything."""

from __future__ import annotations

import tomllib

from tests.commands import REPOSITORY


def test_no_module_is_excepted():
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["mypy"]
    assert not [entry["module"] for entry in settings["overrides"] if entry.get("ignore_errors")]


def test_model_utils_and_every_script_are_checked():
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["mypy"]
    scripts = {path.name for path in REPOSITORY.glob("*.py")}
    assert set(settings["files"]) == {"model", "utils", *scripts}
