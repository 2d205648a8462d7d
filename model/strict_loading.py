"""Strict loading: missing, unexpected and wrongly shaped weights are an error that lists them in a table."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from model.errors import MisfitError
from model.huggingface import from_pretrained

NAMES_SHOWN = 8

# The weights of each part of the model, and the probable cause if only weights of that part do not fit.
PROBABLE_CAUSES = (
    (
        ("vision_tower", "multi_modal_projector"),
        "Is --vision_tower the CLIP that this LLaVA was trained with?",
    ),
    (
        ("sam.",),
        "Is --vision_pretrained (sam_config of the folder's config.json) the mask decoder of these weights?",
    ),
    (
        ("embed_tokens", "lm_head"),
        "Is the tokenizer, or --format, the one that these weights were trained with?",
    ),
)
OTHER_CAUSE = "Is --version a complete folder, with the config.json of its own weights?"


@dataclass(frozen=True)
class Misfit:
    """A row of the table of weights that do not fit; an empty string means that the weight does not exist."""

    name: str
    expected: str
    found: str


def shape_of(value: Tensor | Sequence[int]) -> str:
    return str(tuple(value.shape if isinstance(value, Tensor) else value))


def raise_for_misfits(rows: Sequence[Misfit], *, source: str, hint: str = "") -> None:
    """Raises a MisfitError with the table of `rows` and the probable cause, if there are any rows.

    Args:
        hint: the probable cause; derived from the names if empty.
    """
    if not rows:
        return
    counts = {
        "missing": sum(not row.found for row in rows),
        "unexpected": sum(not row.expected for row in rows),
        "of another shape": sum(bool(row.found and row.expected) for row in rows),
    }
    summary = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    shown = [("name", "expected", "found")]
    shown += [(row.name, row.expected or "-", row.found or "-") for row in rows[:NAMES_SHOWN]]
    widths = [max(len(cells[column]) for cells in shown) for column in range(2)]
    lines = [f"  {name:{widths[0]}}  {expected:{widths[1]}}  {found}" for name, expected, found in shown]
    if len(rows) > NAMES_SHOWN:
        lines.append(f"  and {len(rows) - NAMES_SHOWN} more")
    table = "\n".join(lines)
    cause = hint or probable_cause([row.name for row in rows])
    raise MisfitError(f"the weights of {source} do not fit the model: {summary}\n{table}\n{cause}")


def probable_cause(names: Sequence[str]) -> str:
    """The probable cause if exactly the weights of these names do not fit."""
    for parts, cause in PROBABLE_CAUSES:
        if all(any(part in name for part in parts) for name in names):
            return cause
    return OTHER_CAUSE


def check_keys(missing: Iterable[str], unexpected: Iterable[str], *, source: str, hint: str = "") -> None:
    """Raises a MisfitError that lists missing and unexpected weights of `source`, if there are any."""
    rows = [Misfit(name, "a weight", "") for name in sorted(missing)]
    rows += [Misfit(name, "", "a weight") for name in sorted(unexpected)]
    raise_for_misfits(rows, source=source, hint=hint)


def check_fit(
    expected: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    *,
    source: str,
    hint: str = "",
    required: Collection[str] | None = None,
) -> None:
    """Raises a MisfitError unless `weights` have the names and shapes of `expected`.

    Args:
        required: names that must exist in `weights`; all of `expected` if not given.
    """
    required = expected.keys() if required is None else required
    rows = [Misfit(name, shape_of(expected[name]), "") for name in sorted(set(required) - weights.keys())]
    rows += [Misfit(name, "", shape_of(weights[name])) for name in sorted(weights.keys() - expected.keys())]
    rows += [
        Misfit(name, shape_of(expected[name]), shape_of(value))
        for name, value in weights.items()
        if name in expected and value.shape != expected[name].shape
    ]
    raise_for_misfits(rows, source=source, hint=hint)


def load_strictly(
    module: torch.nn.Module, weights: Mapping[str, Tensor], *, source: str, hint: str = ""
) -> None:
    """Copies weights into a module with the same names and shapes.

    Raises:
        MisfitError: weights are missing, unexpected or of another shape.
    """
    check_fit(module.state_dict(), weights, source=source, hint=hint)
    module.load_state_dict(dict(weights))


def load_pretrained(
    model_class: type[PreTrainedModel], folder: Path | None, *, source: str, hint: str = "", **kwargs: Any
) -> PreTrainedModel:
    """`model_class.from_pretrained(folder, **kwargs)`, but strict: the stock method initializes missing weights.

    Raises:
        MisfitError: weights are missing, unexpected or of another shape.
    """
    model, info = from_pretrained(
        model_class, folder, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
    )
    check_loading_info(info, source=source, hint=hint)
    return model


def check_loading_info(info: Mapping[str, Any], *, source: str, hint: str = "") -> None:
    """Raises a MisfitError if Hugging Face's `output_loading_info` lists weights that do not fit."""
    rows = [Misfit(name, "a weight", "") for name in sorted(info["missing_keys"])]
    rows += [Misfit(name, "", "a weight") for name in sorted(info["unexpected_keys"])]
    rows += [
        Misfit(name, shape_of(own), shape_of(stored)) for name, stored, own in sorted(info["mismatched_keys"])
    ]
    raise_for_misfits(rows, source=source, hint=hint)
