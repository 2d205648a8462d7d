"""Settings as YAML that `--config` reads again: all of them, defaults included."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from utils.common.command_line import STARTED_IN
from utils.common.files import write_whole
from utils.common.settings import declared, path_settings

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def as_yaml(config: DataclassInstance, left_out: Sequence[str] = ()) -> str:
    """Every setting with its value, in the groups of --help; from the same folder `--config` gives the same again."""
    order = list(dict.fromkeys(one.group for one in declared(config)))
    shown = [one for one in declared(config) if one.name not in left_out]
    paragraphs = []
    for group, members in groupby(
        sorted(shown, key=lambda one: order.index(one.group)), lambda one: one.group
    ):
        values = {one.name: getattr(config, one.name) for one in members}
        paragraphs.append(f"# {group}\n{_dump(values)}")
    return "\n".join(paragraphs)


def save_config(config: DataclassInstance, path: Path) -> None:
    """Write settings as YAML that `--config` reads, from any folder: paths that are there become absolute."""
    content = asdict(config) | {STARTED_IN: os.getcwd()}
    for name in path_settings(config):
        if content[name] and os.path.exists(content[name]):
            content[name] = os.path.abspath(content[name])
    write_whole(path, _dump(content))


def _dump(content: object) -> str:
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
