"""Rules for the values of settings: a value that breaks one is a UserError with the value, the rule and the cure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from model.errors import UserError
from utils.common.settings import declared

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


MAX_PARALLEL = 1024  # processes or threads that one process starts
MAX_SECONDS = 1e6  # that anybody waits: eleven days


def check_choices(config: DataclassInstance) -> None:
    """UserError for a value that is not among the choices of its setting."""
    for one in declared(config):
        value = getattr(config, one.name)
        if one.choices and value not in one.choices:
            known = ", ".join(map(str, one.choices))
            raise UserError(f"--{one.name} {value!r} is not known; choose one of: {known}")


def require_positive(config: DataclassInstance, *names: str) -> None:
    """UserError for a number that is not above 0; None, no value, is no number."""
    _require(config, names, lambda value: 0 < value < math.inf, "must be > 0")  # NaN is neither


def require_not_negative(config: DataclassInstance, *names: str) -> None:
    """UserError for a number below 0."""
    _require(config, names, lambda value: 0 <= value < math.inf, "must be >= 0")


def require_fraction(config: DataclassInstance, *names: str) -> None:
    """UserError for a number that is not within 0 to 1."""
    _require(config, names, lambda value: 0 <= value <= 1, "must be a fraction, 0 to 1")


def require_at_most(config: DataclassInstance, limit: float, *names: str) -> None:
    """UserError for a number that no machine can have."""
    _require(config, names, lambda value: value <= limit, f"must be at most {limit:,g}")


def _require(
    config: DataclassInstance, names: Sequence[str], holds: Callable[[float], bool], rule: str
) -> None:
    for one in declared(config):
        value = getattr(config, one.name)
        if one.name in names and value is not None and not holds(value):
            cure = f"; leave it out for {one.unset}" if one.unset else ""
            got = f"{value}, which is not finite" if value == math.inf else value
            raise UserError(f"--{one.name} {rule}, got {got}{cure}")
