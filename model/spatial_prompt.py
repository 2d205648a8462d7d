"""The spatial prompt: where the language model looks when it decides on a [SEG], as a prompt for the mask decoder.

    state that decides on [SEG] -> query --+
                                           +-> similarity on the token grid -> placed in the image -> mask prompt
    states of the image tokens  -> key ----+

The paper's model prompts the mask decoder with one vector; where the object is has to pass through it. The similarity
of that vector with the image tokens says it directly (the idea of AnchorSeg, arXiv 2604.18562, not its layout).
The gate of each [SEG] says how much of the map is used. It is 0 in the beginning, so training starts as without.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.inputs import Size
from model.losses import DICE_EPS
from model.token_grid import Placement

DEFAULT_DIM = 64


@dataclass(frozen=True, kw_only=True)
class SpatialPrompts:
    """What groups of [SEG] ask the mask decoder for, beside their prompt embedding; n masks altogether."""

    maps: list[Tensor]  # for each group (n_i, grid rows, grid columns) logits on the token grid of its image
    gates: Tensor  # (n,) in -1..1: 0 is no mask prompt, 1 the whole
    latent: Tensor  # (n, num_latent_prompts, prompt_dim) further prompt tokens


class SpatialPrompt(nn.Module):
    """Similarity maps of deciding states with image tokens, their gates, and further prompt tokens.

    Args:
        hidden_dim: of the language model's states.
        prompt_dim: of the mask decoder's prompt tokens.
        num_latent_prompts: further prompt tokens of a [SEG], each a linear function of its state.
        dim: of the space in which states are compared.
    """

    def __init__(
        self, hidden_dim: int, prompt_dim: int, *, num_latent_prompts: int = 0, dim: int = DEFAULT_DIM
    ) -> None:
        super().__init__()
        self.query = nn.Linear(hidden_dim, dim)
        self.key = nn.Linear(hidden_dim, dim)
        self.gate = nn.Linear(hidden_dim, 1)
        self.latent = nn.Linear(hidden_dim, num_latent_prompts * prompt_dim) if num_latent_prompts else None
        self.prompt_dim = prompt_dim

    @torch.no_grad()
    def initialize(self, generator: torch.Generator) -> None:
        """Initial values: gates are closed, the rest as torch initializes it, but from this generator."""
        for layer in (self.query, self.key, self.latent):
            if layer is not None:
                bound = layer.in_features**-0.5
                nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
                nn.init.zeros_(layer.bias)
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)

    def forward(
        self,
        deciding: Sequence[Tensor],
        image_states: Sequence[Tensor],
        sizes: Sequence[Size],
        owners: Sequence[int],
    ) -> SpatialPrompts:
        """The prompts of groups of [SEG], each group about one image.

        Args:
            deciding: for each group (n_i, hidden_dim) states that decide on a [SEG].
            image_states: for each image (rows * columns, hidden_dim) states of its token grid.
            sizes: for each image rows and columns of the grid.
            owners: for each group the index of its image.
        """
        states = torch.cat(list(deciding))
        queries = self.query(states).split([len(group) for group in deciding])
        keys = self.key(torch.cat(list(image_states))).split([len(tokens) for tokens in image_states])
        scale = 1 / math.sqrt(self.query.out_features)
        maps = [
            (scale * group @ keys[owner].T).float().unflatten(-1, sizes[owner])
            for group, owner in zip(queries, owners, strict=True)
        ]
        if self.latent is None:
            latent = states.new_zeros(len(states), 0, self.prompt_dim)
        else:
            latent = self.latent(states).unflatten(-1, (-1, self.prompt_dim))
        return SpatialPrompts(maps=maps, gates=self.gate(states).squeeze(-1).float().tanh(), latent=latent)


def map_losses(
    maps: Sequence[Tensor], averages: Sequence[Placement], gt_masks: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """Binary cross-entropy and dice loss of similarity maps against masks at the size of the token grid.

    A cell's target is the fraction of it that the mask covers. Both are as in `mask_losses`, but the sums of dice are
    not scaled: a grid has hundreds of cells, not hundreds of thousands of pixels.

    Args:
        maps: for each image (n_i, rows, columns) logits.
        averages: for each image `average_over_cells` of its grid.
        gt_masks: for each image (n_i, height, width).

    Returns:
        Two tensors (sum of n_i,).
    """
    terms = [torch.zeros(2, 0, device=maps[0].device)]
    for logits, average, masks in zip(maps, averages, gt_masks, strict=True):
        if not len(logits):
            continue
        target = average(masks)
        bce = F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean((1, 2))
        probabilities = logits.sigmoid()
        both = (probabilities * target).sum((1, 2))
        total = probabilities.sum((1, 2)) + target.sum((1, 2))
        dice = 1 - (2 * both + DICE_EPS) / (total + DICE_EPS)
        terms.append(torch.stack([bce, dice]))
    bce, dice = torch.cat(terms, dim=1)
    return bce, dice
