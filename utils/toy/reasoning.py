"""Implicit questions about a toy scene: the target is described by its purpose or properties, never named."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from utils.toy.scene import CLASSES, Scene

MIN_FRACTION = 0.002  # of the image: smaller targets are not asked about


@dataclass(frozen=True, kw_only=True)
class Puzzle:
    """Classes that together answer a question, and the phrasings of that question."""

    names: tuple[str, ...]
    sentences: tuple[str, ...]
    phrases: tuple[str, ...]  # to be put into "What is {} in this image?"
    because: str  # ends "The answer is the ball, because ..."
    rivals: tuple[str, ...] = ()  # classes that could also be meant; their pixels are ignored


@dataclass(frozen=True)
class Reasoning:
    """One question about one scene."""

    question: str
    is_sentence: bool
    names: tuple[str, ...]  # classes that the mask covers
    mask: np.ndarray  # (height, width) bool
    ignore: np.ndarray  # (height, width) bool, ignored pixels
    explanation: str


@cache
def load_puzzles() -> tuple[Puzzle, ...]:
    """The puzzles of reasoning.yaml."""
    entries = yaml.safe_load((Path(__file__).parent / "reasoning.yaml").read_text(encoding="utf-8"))
    return tuple(Puzzle(**{key: _frozen(value) for key, value in entry.items()}) for entry in entries)


def _frozen(value: Any) -> Any:
    """A list of the file as a tuple; a text as it is."""
    return value if isinstance(value, str) else tuple(value)


def reasoning_questions(scene: Scene, rng: np.random.Generator) -> list[Reasoning]:
    """All questions that apply to this scene, in random order; those with equal `names` have the same mask."""
    asked = []
    present = set(scene.present)
    for puzzle in load_puzzles():
        names = tuple(name for name in puzzle.names if name in present)
        mask, ignore = (
            np.isin(scene.label, [CLASSES.index(n) for n in side]) for side in (names, puzzle.rivals)
        )
        if mask.mean() < MIN_FRACTION:
            continue
        explanation = f"The answer is the {' and the '.join(names)}, because {puzzle.because}."
        texts = [(text, True) for text in puzzle.sentences] + [(text, False) for text in puzzle.phrases]
        asked += [
            Reasoning(text, is_sentence, names, mask, ignore, explanation) for text, is_sentence in texts
        ]
    return [asked[index] for index in rng.permutation(len(asked))]
