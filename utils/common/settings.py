"""Settings classes as command lines: a field is a flag is a YAML key."""

from __future__ import annotations

import argparse
import difflib
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, field, fields
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import yaml
from transformers import HfArgumentParser

from model.errors import UserError
from model.files import read_yaml
from utils.common.paths import resolve

Config = TypeVar("Config")
STARTED_IN = "started_in"  # in a run's run.yaml: the folder that its relative paths count from


def setting(
    default: Any, help: str, choices: Sequence[Any] | None = None, *, alone: Any = None, path: bool = False
) -> Any:
    """A field of a settings class.

    Args:
        alone: the value of a flag that is given without one.
        path: it names a file or folder, or a pattern or a repository of the hub; `utils.common.paths.resolve` reads
        it.
    """
    metadata: dict[str, Any] = {"help": help} | ({"choices": list(choices)} if choices else {})
    if path:
        metadata["path"] = True
    if alone is not None:
        metadata |= {"nargs": "?", "const": alone}
    return field(default=default, metadata=metadata)


class _Parser(HfArgumentParser):
    """Errors as ValueError, so that a script reports all of them in one way."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message)

    def add_argument(self, *names: str, path: bool = False, **told: Any) -> argparse.Action:  # type: ignore[override]
        """As argparse's; the metadata of a setting arrive here, and `path` is none of argparse's."""
        return super().add_argument(*names, **told)


def parse_config(
    kind: type[Config], argv: Sequence[str] | None = None, *, passed_over: Sequence[str] = ()
) -> Config:
    """Settings from the command line; --config FILE.yaml gives values that flags win over.

    Settings `passed_over` may stand in the file, for another script, and mean nothing here.

    Raises:
        ValueError: an unknown flag or key, or a value that breaks a rule.
        FileNotFoundError: there is no such YAML file.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    before = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    before.add_argument("--config", default="")
    known, argv = before.parse_known_args(argv)
    parser = _Parser(kind, allow_abbrev=False, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--config", default="", help="YAML file with any of these settings")
    names = [entry.name for entry in fields(kind)]  # type: ignore[arg-type]
    if known.config:
        argv = [*_flags_of(resolve(known.config, "--config"), names, kind, passed_over), *argv]
    values, unknown = parser.parse_known_args(argv)
    if unknown:
        switches = [f"--no_{entry.name}" for entry in fields(kind) if entry.default is True]  # type: ignore[arg-type]
        flags = [*(f"--{name}" for name in names), *switches]
        close = difflib.get_close_matches(unknown[0].split("=")[0], flags, n=1)
        hint = f"; did you mean {close[0]}?" if close else "; --help lists them"
        raise UserError(f"unknown flag {unknown[0]}{hint}")
    return kind(**{name: resolve_paths(kind, name, getattr(values, name)) for name in names})


def resolve_paths(kind: type, name: str, value: Any) -> Any:
    """The value of a setting, resolved if it names a path."""
    return resolve(value, f"--{name}") if value and name in path_settings(kind) else value


def path_settings(kind: Any) -> set[str]:
    """Names of the settings of a class that are paths."""
    return {entry.name for entry in fields(kind) if entry.metadata.get("path")}


def _flags_of(path: str, names: Sequence[str], kind: type, passed_over: Sequence[str]) -> list[str]:
    """The settings of a YAML file as flags, so that they pass the same checks."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"--config {path} does not exist; shipped ones are in configs/")
    content = read_yaml(Path(path), flag="--config")
    flags = []
    for name, value in content.items():
        if name == STARTED_IN or (name not in names and name in passed_over):
            continue
        if name not in names:
            close = difflib.get_close_matches(str(name), names, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise UserError(f"{path}: unknown setting {name!r} of {kind.__name__}{hint}")
        if value is not None:
            flags.append(f"--{name}={value}")
    return flags


def save_config(config: Any, path: Path) -> None:
    """Write settings as YAML that `--config` reads, from any folder: paths that are there become absolute."""
    content = asdict(config) | {STARTED_IN: os.getcwd()}
    for name in path_settings(config):
        if content[name] and os.path.exists(content[name]):
            content[name] = os.path.abspath(content[name])
    path.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")


def check_choices(config: Any) -> None:
    for entry in fields(config):
        choices = entry.metadata.get("choices")
        value = getattr(config, entry.name)
        if choices and value not in choices:
            known = ", ".join(str(choice) for choice in choices)
            raise UserError(f"--{entry.name} {value!r} is not known; choose one of: {known}")


def require_positive(config: Any, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if value is not None and not 0 < value < math.inf:  # neither is NaN
            raise UserError(f"--{name} must be > 0, got {value}")


def require_not_negative(config: Any, *names: str) -> None:
    for name in names:
        if not 0 <= getattr(config, name) < math.inf:
            raise UserError(f"--{name} must be >= 0, got {getattr(config, name)}")
