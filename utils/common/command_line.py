"""Settings from the command line and from the YAML file of --config."""

from __future__ import annotations

import argparse
import difflib
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from model.errors import UserError
from model.files import read_yaml
from utils.common.commands import Parser, command
from utils.common.help import HelpEntry, help_page
from utils.common.paths import resolve
from utils.common.settings import Setting, declared, resolve_paths

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Config = TypeVar("Config", bound="DataclassInstance")
STARTED_IN = "started_in"  # in a run's run.yaml: the folder that its relative paths count from
LARGEST = 2**63
GENERAL = (
    HelpEntry(
        flag="--config FILE", text="YAML file with any of these settings; flags override it", group="general"
    ),
    HelpEntry(flag="-h, --help", text="show this page", group="general"),
)
TRUTH = dict.fromkeys(("true", "yes", "t", "y", "1"), True) | dict.fromkeys(
    ("false", "no", "f", "n", "0"), False
)


class _Parser(Parser):
    """The flags of a settings class; --help is a page."""

    def __init__(self, kind: type[DataclassInstance], about: str | None) -> None:
        super().__init__(allow_abbrev=False)
        self.settings = declared(kind)
        self.about = about or inspect.getdoc(kind) or ""
        self.add_argument("--config")
        for one in self.settings:
            self._add_setting(one)

    def _add_setting(self, one: Setting) -> None:
        flag, *switch = one.flags
        if one.kind is bool:
            self.add_argument(flag, nargs="?", const=True, default=one.default, type=_truth)
            for name in switch:
                self.add_argument(name, dest=one.name, action="store_false")
            return
        reader = _whole if one.kind is int else one.kind
        self.add_argument(
            flag,
            type=_or_none(reader) if one.optional else reader,
            default=one.default,
            choices=one.choices or None,
            **({} if one.alone is None else {"nargs": "?", "const": one.alone}),
        )

    def format_help(self) -> str:
        return help_page(self.about, (*GENERAL, *(one.help_entry() for one in self.settings)))


def parse_config(
    kind: type[Config],
    argv: Sequence[str] | None = None,
    *,
    about: str | None = None,
    passed_over: type[DataclassInstance] | None = None,
) -> Config:
    """Settings from the command line; --config FILE.yaml gives values that flags win over.

    Args:
        about: what --help says first; None: what the class says.
        passed_over: another script's settings, which may stand in the file and mean nothing here.

    Raises:
        ValueError: an unknown flag or key, or a value that breaks a rule.
        FileNotFoundError: there is no such YAML file.
    """
    parser = _Parser(kind, about)
    argv = _canonical(sys.argv[1:] if argv is None else argv, parser.settings)
    before = Parser(add_help=False, allow_abbrev=False)
    before.add_argument("--config")
    known, argv = before.parse_known_args(argv)
    if known.config is not None:
        argv = [*_flags_of(resolve(known.config, "--config"), kind, passed_over), *argv]
    values, unknown = parser.parse_known_args(argv)
    if unknown:
        flags = {flag: flag for flag in ("--help", "--config")}
        flags |= {flag: flag for one in parser.settings for flag in one.flags}
        flags |= {f"--{one.misnomer}": f"--{one.name}" for one in parser.settings if one.misnomer}
        meant = _closest(unknown[0].split("=")[0], flags)
        raise UserError(
            f"unknown flag {unknown[0]}; {f'did you mean {meant}?' if meant else '--help lists them'}"
        )
    return kind(**{one.name: resolve_paths(one, getattr(values, one.name)) for one in parser.settings})


def answer_at_once(
    script: str,
    kind: type[DataclassInstance],
    about: str | None,
    *,
    passed_over: type[DataclassInstance] | None = None,
) -> None:
    """For a command, before it imports what takes seconds: --help and mistakes in its flags end it here.

    Arguments as of `parse_config`.
    """

    @command(script)
    def check(argv: Sequence[str] | None) -> None:
        parse_config(kind, argv, about=about, passed_over=passed_over)

    if code := check():
        sys.exit(code)


def _canonical(argv: Sequence[str], settings: Sequence[Setting]) -> list[str]:
    """Flags as they are declared: --exp-name is --exp_name, and an alias is the setting's own name."""
    names = {flag: flag for one in settings for flag in one.flags}
    names |= {f"--{one.alias}": f"--{one.name}" for one in settings if one.alias}
    written = []
    for word in argv:
        head, equals, value = word.partition("=")
        spelled = "--" + head[2:].replace("-", "_") if head.startswith("--") else head
        written.append(f"{names.get(spelled, head)}{equals}{value}")
    return written


def _closest(text: str, names: Mapping[str, str]) -> str:
    """What the name most like `text` stands for; "" if none is like it."""
    close = difflib.get_close_matches(text, names, n=1)
    return names[close[0]] if close else ""


def _truth(text: str) -> bool:
    if text.lower() not in TRUTH:
        raise argparse.ArgumentTypeError(f"must be true or false, got {text!r}")
    return TRUTH[text.lower()]


def _whole(text: str) -> int:
    """A whole number, of 64 bits at most: what libraries and files hold."""
    if abs(number := int(text)) >= LARGEST:
        raise argparse.ArgumentTypeError(
            f"must be smaller than 2^63, got a number of {len(str(number))} digits"
        )
    return number


_whole.__name__ = "int"  # argparse names it in errors


def _or_none(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    """Reads a value, or `none` for no value."""

    def read(text: str) -> Any:
        return None if text.lower() == "none" else kind(text)

    read.__name__ = kind.__name__  # argparse names it in errors
    return read


def _flags_of(
    path: str, kind: type[DataclassInstance], passed_over: type[DataclassInstance] | None
) -> list[str]:
    """The settings of a YAML file as flags, so that they pass the same checks."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"--config {path} does not exist; shipped ones are in configs/")
    content = read_yaml(Path(path), flag="--config")
    names, optional = _keys(kind), {one.name for one in declared(kind) if one.optional}
    kinds = {one.name: one.kind for one in declared(kind)}
    ignored = {STARTED_IN, *(_keys(passed_over) if passed_over else ())} - set(names)
    given: dict[str, Any] = {}
    for key, value in content.items():
        if key in ignored:
            continue
        if key not in names:
            spellings = names | {one.misnomer: one.name for one in declared(kind) if one.misnomer}
            meant = _closest(str(key), spellings)
            hint = f"; did you mean {meant!r}?" if meant else ""
            raise UserError(f"{path}: unknown setting {key!r} of {kind.__name__}{hint}")
        if (value is None and names[key] not in optional) or (key != names[key] and value == ""):
            continue
        _check_scalar(value, kinds[names[key]], f"{path}: {key}")
        if names[key] in given:
            raise UserError(f"{path}: {names[key]!r} is given twice, also by its other name; leave one out")
        given[names[key]] = "none" if value is None else value
    return [f"--{name}={value}" for name, value in given.items()]


def _check_scalar(value: Any, kind: type, named: str) -> None:
    """UserError for what no flag could say: several values, bytes, or a truth value in place of a text."""
    if isinstance(value, list | tuple | dict | set | bytes):
        raise UserError(
            f"{named} must be one value, and is a {type(value).__name__}; write it as the flag is written"
        )
    if kind is str and isinstance(value, bool):
        raise UserError(f"{named} must be a text, and YAML reads this word as {value}; put it into quotes")


def _keys(kind: type[DataclassInstance]) -> dict[str, str]:
    """Keys of a file, and the settings that they stand for."""
    keys = {one.name: one.name for one in declared(kind)}
    return keys | {one.alias: one.name for one in declared(kind) if one.alias}
