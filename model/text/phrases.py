"""The paraphrases of phrases.yaml."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import yaml

from model.text.special_tokens import Special, Text


@cache
def phrases() -> dict[str, tuple[str, ...]]:
    """The paraphrase lists of phrases.yaml, by name."""
    text = Path(__file__).with_name("phrases.yaml").read_text(encoding="utf-8")
    return {name: tuple(entries) for name, entries in yaml.safe_load(text).items()}


def pick(name: str, rng: np.random.Generator) -> str:
    """One of the paraphrases of that name."""
    choices = phrases()[name]
    return choices[int(rng.integers(len(choices)))]


def with_token(phrase: str, token: str | None) -> Text:
    """A paraphrase with its {seg} replaced by a special token; without it for None."""
    if token is None:
        return (phrase.replace(" {seg}", ""),)
    before, _, after = phrase.partition("{seg}")
    return tuple(piece for piece in (before, Special(token), after) if piece)
