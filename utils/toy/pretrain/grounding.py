"""Where a text speaks of what: for positions of a token sequence the patches, and the box, of what is meant."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from utils.toy.pretrain.clip import PATCH
from utils.toy.pretrain.common import NUM_LABELS, Square, patch_histogram
from utils.toy.pretrain.talk import Spoken


@dataclass(frozen=True)
class Places:
    """N positions in the texts of a batch, and what is spoken of there."""

    rows: Tensor  # (N,) int64
    columns: Tensor  # (N,) int64
    shares: Tensor  # (N, patches) float32, the share of each patch
    boxes: Tensor  # (N, 4) float32, (left, top, right, bottom) as fractions of the square; NaN: not one thing

    @classmethod
    def of(cls, found: list[dict[int, Spoken]]) -> "Places":
        """Collect the positions of each text."""
        flat = [
            (row, column, spoken) for row, places in enumerate(found) for column, spoken in places.items()
        ]
        nowhere = np.full(4, np.nan, np.float32)
        return cls(
            torch.tensor([row for row, _, _ in flat]),
            torch.tensor([column for _, column, _ in flat]),
            torch.from_numpy(np.stack([spoken.share for _, _, spoken in flat])),
            torch.from_numpy(
                np.stack([nowhere if spoken.box is None else spoken.box for _, _, spoken in flat])
            ),
        )


def places_of(
    tokens: list[int],
    square: Square,
    said: dict[tuple[int, ...], Spoken],
    names: list[int],
    answers: set[int],
    *,
    to_answer: bool,
) -> dict[int, Spoken]:
    """What is spoken of at positions of one text.

    At the first token of a class name (`names`, in the order of CLASSES) all of its kind; at the end of an
    expression (`said`, by its tokens) its own target, and if `to_answer`, also from there to the position before
    the answer's first word (`answers`), so that "it is" knows of what it speaks.
    """
    shares = patch_histogram(square.label, PATCH, NUM_LABELS)
    places = {
        position: Spoken(shares[:, names.index(token)])
        for position, token in enumerate(tokens)
        if token in names
    }
    for words, spoken in said.items():
        for start in range(len(tokens) - len(words) + 1):
            if tuple(tokens[start : start + len(words)]) == words:
                position = start + len(words) - 1
                places[position] = spoken
                while to_answer and position + 1 < len(tokens) and tokens[position + 1] not in answers:
                    position += 1
                    places[position] = spoken
    return places
