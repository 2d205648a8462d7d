"""Whether a config.json can be that of a model, before anything is built or allocated from it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from model.errors import UserError
from model.files import read_json

LAYERS = re.compile(r"(layers|depth|blocks_per_stage|num_multimask_outputs)$")
MAX_LAYERS = 1000  # of any part; the largest published models have about 130
MAX_NUMBER = 2**31 - 1  # of any other whole number
# Entries that are what PyTorch calls a dtype.
DTYPES = ("dtype", "torch_dtype")
TEXTS = ("model_type", "mm_vision_tower", "vision_tower", "mm_projector_type", "prompt", "image_aspect_ratio")
SECTIONS = ("vlm_config", "text_config", "vision_config", "sam_config")
AT_LEAST_ONE = re.compile(
    r"(^|_)(hidden_size|patch_size|image_size|num_attention_heads|num_heads|vocab_size)$"
)


def check_plausible(folder: Path) -> None:
    """UserError for an entry of a folder's config.json that no model has, or of a type that it cannot be."""
    path = folder / "config.json"
    check_entries(path, read_json(path))


def check_entries(path: Path, content: Mapping[str, Any]) -> None:
    """`check_plausible` of the content of a config.json, wherever it comes from."""
    for name, value in _entries(content):
        key = name.rpartition(".")[2]
        if key in SECTIONS and not isinstance(value, Mapping):
            raise UserError(f"{path}: {name} is {_brief(value)}, not an object; {CURE}")
        if key in TEXTS and value is not None and not isinstance(value, str):
            raise UserError(f"{path}: {name} is {_brief(value)}, not a text; {CURE}")
        if key in DTYPES and value is not None and not isinstance(value, str):
            raise UserError(f"{path}: {name} is {_brief(value)}, not the name of a dtype; {CURE}")
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{path}: {name} is {value}, not a finite number; {CURE}")
        if key == "blocks_per_stage" and isinstance(value, list) and all(type(each) is int for each in value):
            value = sum(value) if min(value, default=0) >= 0 else min(value)
        if LAYERS.search(key) and not isinstance(value, Mapping | list | None):
            if type(value) is not int or not 0 <= value <= MAX_LAYERS:
                raise UserError(
                    f"{path}: {name} is {_brief(value)}; it is a number from 0 to {MAX_LAYERS}; {CURE}"
                )
        elif AT_LEAST_ONE.search(key) and not all(
            type(number) is int and 1 <= number <= MAX_NUMBER
            for number in (value if isinstance(value, list) and value else [value])
        ):
            raise UserError(
                f"{path}: {name} is {_brief(value)}; it is a number from 1 to {MAX_NUMBER:,}; {CURE}"
            )
        elif isinstance(value, int) and abs(value) > MAX_NUMBER:
            raise UserError(
                f"{path}: {name} is {_brief(value)}; no such number is above {MAX_NUMBER:,}; {CURE}"
            )


CURE = "copy config.json from where the weights come from"


def _brief(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _entries(content: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Every entry of an object and of those inside it: "vlm_config.text_config.hidden_size"."""
    for name, value in content.items():
        yield f"{above}{name}", value
        if isinstance(value, Mapping):
            yield from _entries(value, f"{above}{name}.")
