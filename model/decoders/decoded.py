"""What a mask decoder answers to prompts: low-resolution masks; a detector of concepts also presence, instances."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Candidates:
    """Instances that a detector found for one prompt, the best first."""

    masks: Tensor  # (k, mask_side, mask_side) logits
    scores: Tensor  # (k,) float32, 0 to 1


@dataclass(frozen=True, kw_only=True, eq=False)
class Decoded:
    """The answers to n prompts."""

    low_res: Tensor  # (n, mask_side, mask_side) float32 logits
    presence: Tensor | None = None  # (n,) float32 logits: is what the prompt names in the image?
    candidates: tuple[Candidates, ...] | None = None  # n, where they were asked for


@dataclass(frozen=True, kw_only=True, eq=False)
class Instances:
    """Instances of one class in one image, at its original size, the best first; on the CPU."""

    masks: Tensor  # (k, height, width) bool
    scores: Tensor  # (k,) float32, 0 to 1: probability of the instance times that of the class

    @classmethod
    def join(cls, parts: Sequence[Instances]) -> Instances:
        """Those of several masks of one class, the best first."""
        scores = torch.cat([part.scores for part in parts])
        order = scores.argsort(descending=True, stable=True)
        return cls(masks=torch.cat([part.masks for part in parts])[order], scores=scores[order])
