"""Where a text speaks of what: for positions of a token sequence the patches, and the box, of what is meant."""

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
    """The tokens that say what is spoken of."""

    names: dict[int, str]  # first token of a class name -> the class
    colours: dict[int, str]
    answers: set[int]  # with which short answers begin
    heard: tuple[int, ...]  # names and what else tells one thing from another


@dataclass(frozen=True)
class Place:
    """A position that speaks of something."""

    spoken: Spoken
    phrase: tuple[int, ...]  # the tokens, up to here, that say of what


@dataclass(frozen=True)
class Places:
    """N positions in the texts of a batch, and what is spoken of there."""

    rows: Tensor  # (N,) int64
    columns: Tensor  # (N,) int64
    shares: Tensor  # (N, patches) float32, the share of each patch
    boxes: Tensor  # (N, 4) float32, (left, top, right, bottom) as fractions of the square; NaN: not one thing
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
    """What is spoken of at positions of one text.

    At a class name all of its kind, or all of its kind and colour when that was said; at the end of an expression
    (`said`, by its tokens) its own target, and if `to_answer`, also from there to the position before the answer's
    first word, so that "it is" knows of what it speaks.

    The text is read from the left: at the name nobody knows yet whether "the red car" goes on with "near the house".
    So what stands there must be true of either - all red cars, not all cars.
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
    """Tokens of the class, and of its colour if said, that a position completes: "red car", "person in red"."""
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
    """(patches,) float32, the share of each patch that a class covers, or its things of one colour."""
    if colour is None:
        return patch_histogram(square.label == CLASSES.index(name), PATCH, 2)[:, 1]
    things = square.scene.things
    numbers = [k + 1 for k, thing in enumerate(things) if (thing.name, thing.colour) == (name, colour)]
    return patch_histogram(np.isin(square.thing, numbers), PATCH, 2)[:, 1]
