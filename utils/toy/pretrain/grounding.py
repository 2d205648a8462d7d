"""Grounding targets: for positions of a token sequence the patches and the box of what the text refers to."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from utils.toy.pretrain.clip import PATCH
from utils.toy.pretrain.common import Square, patch_histogram
from utils.toy.pretrain.talk import Spoken
from utils.toy.scene import CLASSES


@dataclass(frozen=True)
class Words:
    """The tokens that determine the referent."""

    names: dict[int, str]  # first token of a class name -> the class
    colours: dict[int, str]
    answers: set[int]  # first tokens of short answers
    heard: tuple[int, ...]  # names and other distinguishing words


@dataclass(frozen=True)
class Place:
    """A position that refers to something."""

    spoken: Spoken
    phrase: tuple[int, ...]  # the tokens of the phrase so far


@dataclass(frozen=True)
class Places:
    """N positions in the texts of a batch, and their referents."""

    rows: Tensor  # (N,) int64
    columns: Tensor  # (N,) int64
    shares: Tensor  # (N, patches) float32, the fraction of each patch that the referent covers
    boxes: (
        Tensor  # (N, 4) float32, (left, top, right, bottom) as fractions of the square; NaN: several things
    )
    heard: Tensor  # (N, words) float32, 1 for each of `Words.heard` that the phrase has so far

    @classmethod
    def of(cls, found: list[dict[int, Place]], words: Words) -> "Places":
        """Collect the positions of each text."""
        flat = [
            (row, column, place.spoken, place.phrase)
            for row, places in enumerate(found)
            for column, place in places.items()
        ]
        nowhere = np.full(4, np.nan, np.float32)
        return cls(
            torch.tensor([row for row, *_ in flat]),
            torch.tensor([column for _, column, *_ in flat]),
            torch.from_numpy(np.stack([spoken.share for _, _, spoken, _ in flat])),
            torch.from_numpy(
                np.stack([nowhere if spoken.box is None else spoken.box for _, _, spoken, _ in flat])
            ),
            torch.tensor([[float(word in phrase) for word in words.heard] for *_, phrase in flat]),
        )


def places_of(
    tokens: list[int],
    square: Square,
    said: dict[tuple[int, ...], Spoken],
    words: Words,
    *,
    to_answer: bool,
) -> dict[int, Place]:
    """The referents at positions of one text.

    At a class name: all things of its class, or of its class and colour if the colour was given. At the end of an
    expression (`said`, by its tokens): its target; with `to_answer` also at all later positions before the answer's
    first word, so that "it is" has the referent too.

    Attention is causal: at the name the model cannot know whether "the red car" continues with "near the house". So
    the referent there must fit both - all red cars.
    """
    places = {}
    for position in range(len(tokens)):
        kind = _kind_at(tokens, position, words)
        if kind is not None:
            name, colour = words.names[kind[0]], words.colours[kind[1]] if kind[1:] else None
            share = _share_of_kind(square, name, colour)
            places[position] = Place(Spoken(share), kind)
    for text, spoken in said.items():
        for start in range(len(tokens) - len(text) + 1):
            if tuple(tokens[start : start + len(text)]) == text:
                position = start + len(text) - 1
                places[position] = Place(spoken, text)
                while to_answer and position + 1 < len(tokens) and tokens[position + 1] not in words.answers:
                    position += 1
                    places[position] = Place(spoken, text)
    return places


def _kind_at(tokens: list[int], position: int, words: Words) -> tuple[int, ...] | None:
    """Tokens of the class, and of its colour if given, that a position completes: "red car", "person in red"."""
    token = tokens[position]
    if token in words.names:
        before = tokens[position - 1] if position else token
        return (token, before) if before in words.colours else (token,)
    if token in words.colours:
        for earlier in tokens[max(position - 3, 0) : max(position - 1, 0)]:
            if words.names.get(earlier) == "person":
                return earlier, token
    return None


def _share_of_kind(square: Square, name: str, colour: str | None) -> np.ndarray:
    """(patches,) float32, the fraction of each patch covered by a class, or by its things of one colour."""
    if colour is None:
        return patch_histogram(square.label == CLASSES.index(name), PATCH, 2)[:, 1]
    things = square.scene.things
    numbers = [k + 1 for k, thing in enumerate(things) if (thing.name, thing.colour) == (name, colour)]
    return patch_histogram(np.isin(square.thing, numbers), PATCH, 2)[:, 1]
