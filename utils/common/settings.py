"""Settings classes as command lines: a field is a flag is a YAML key.

A setting that was not given has the value None (numbers) or "" (text); its `unset` says what that means ("all", "as
the run says"). `--flag none` on the command line, or an empty value in a file, sets a number back to None. 0 is
always the number, never "not given".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from types import NoneType
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from utils.common.help import HelpEntry
from utils.common.paths import resolve

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

METAVARS = {int: "INT", float: "FLOAT", str: "TEXT"}


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


def resolve_paths(one: Setting, value: Any) -> Any:
    """The value of a setting, resolved if it names a path."""
    return resolve(value, f"--{one.name}") if value and one.path else value


def path_settings(kind: type[DataclassInstance] | DataclassInstance) -> set[str]:
    """Names of the settings of a class that are paths."""
    return {one.name for one in declared(kind) if one.path}
