"""Settings classes as command lines: a field is a flag is a YAML key.

A setting that was not given has the value None (numbers) or "" (text); its `unset` says what that means ("all", "as
the run says"). `--flag none` on the command line, or an empty value in a file, sets a number back to None. 0 is
always the number, never "not given".
"""

from __future__ import annotations

import argparse
import difflib
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_type_hints

from model.errors import UserError
from model.files import read_yaml
from utils.common.commands import Parser
from utils.common.help import HelpEntry, help_page
from utils.common.paths import resolve

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Config = TypeVar("Config", bound="DataclassInstance")
STARTED_IN = "started_in"  # in a run's run.yaml: the folder that its relative paths count from
METAVARS = {int: "INT", float: "FLOAT", str: "TEXT"}
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


def setting(
    default: Any,
    help: str,
    choices: Sequence[Any] = (),
    *,
    group: str = "settings",
    unset: str = "",
    alias: str = "",
    misnomer: str = "",
    alone: Any = None,
    path: bool = False,
) -> Any:
    """A field of a settings class.

    Args:
        help: its meaning, without the default, which --help adds.
        group: the heading below which --help lists it.
        unset: what the default means, where it is no value or says too little.
        alias: another name of the flag and of the key.
        misnomer: a name that it does not have and that people may try; the error says the right one.
        alone: the value of a flag that is given without one.
        path: it names a file or folder, or a pattern or a repository of the hub; `utils.common.paths.resolve` reads
            it.
    """
    metadata = {
        "help": help,
        "choices": tuple(choices),
        "group": group,
        "unset": unset,
        "alias": alias,
        "misnomer": misnomer,
        "alone": alone,
        "path": path,
    }
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A field of a settings class as declared by `setting`."""

    name: str
    kind: type  # bool, int, float or str
    optional: bool  # may be None
    default: Any
    help: str
    choices: tuple[Any, ...]
    group: str
    unset: str
    alias: str
    misnomer: str
    alone: Any
    path: bool

    @property
    def flags(self) -> tuple[str, ...]:
        """--NAME, and the switch --no_NAME of what is on by default."""
        return (f"--{self.name}", f"--no_{self.name}") if self.default is True else (f"--{self.name}",)

    def help_entry(self) -> HelpEntry:
        """As --help lists it."""
        value = "PATH" if self.path else METAVARS.get(self.kind, "")
        flag = ", ".join(self.flags)
        if value:
            flag += f" [{value}]" if self.alone is not None else f" {value}"
        text = self.help
        if self.choices:
            text += f"; one of {', '.join(str(choice) for choice in self.choices if choice != '')}"
        if self.alias:
            text += f"; also --{self.alias}"
        return HelpEntry(flag=flag, text=f"{text}{self._default_text()}", group=self.group)

    def _default_text(self) -> str:
        if self.unset:
            return f" (default: {self.unset})"
        if self.default is None or self.default is False or self.default == "":
            return ""
        shown = "on" if self.default is True else f"{self.default:g}" if self.kind is float else self.default
        return f" (default: {shown})"


def declared(kind: type[DataclassInstance] | DataclassInstance) -> tuple[Setting, ...]:
    """The settings of a class, or of one of its objects, in their order."""
    hints = get_type_hints(kind if isinstance(kind, type) else type(kind))
    found = []
    for entry in fields(kind):
        kinds = get_args(hints[entry.name]) or (hints[entry.name],)
        [value_kind] = [one for one in kinds if one is not NoneType]
        found.append(
            Setting(
                name=entry.name,
                kind=value_kind,
                optional=NoneType in kinds,
                default=entry.default,
                **entry.metadata,
            )
        )
    return tuple(found)


# ---------------------------------------------------------------------------------- the command line


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
        flags = {flag: flag for one in parser.settings for flag in one.flags}
        flags |= {f"--{one.misnomer}": f"--{one.name}" for one in parser.settings if one.misnomer}
        meant = _closest(unknown[0].split("=")[0], flags)
        raise UserError(
            f"unknown flag {unknown[0]}; {f'did you mean {meant}?' if meant else '--help lists them'}"
        )
    return kind(**{one.name: resolve_paths(one, getattr(values, one.name)) for one in parser.settings})


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


def resolve_paths(one: Setting, value: Any) -> Any:
    """The value of a setting, resolved if it names a path."""
    return resolve(value, f"--{one.name}") if value and one.path else value


def path_settings(kind: type[DataclassInstance] | DataclassInstance) -> set[str]:
    """Names of the settings of a class that are paths."""
    return {one.name for one in declared(kind) if one.path}


# ------------------------------------------------------------------------------------------ the file


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
