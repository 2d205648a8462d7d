"""What the model takes apart and gives back: named tensors, shapes beside them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from transformers.utils import ModelOutput

from model.losses import Losses

Size = tuple[int, int]  # (height, width) in pixels


@dataclass(frozen=True, kw_only=True)
class EncodedImages:
    """What both encoders make of a batch of B images. Computed once, for all conversations about them."""

    features: Tensor  # (B, num_image_tokens, hidden_dim) for the language model
    embeddings: Tensor  # (B, prompt_embed_dim, grid, grid) for SAM's mask decoder
    resized_sizes: list[Size]
    original_sizes: list[Size]

    def __len__(self) -> int:
        return len(self.original_sizes)


@dataclass
class LasagnaOutput(ModelOutput):
    """Outputs of `LasagnaForConditionalGeneration.forward`; B images, N conversations of T tokens.

    With labels there are losses, and no logits and masks unless they are asked for.
    """

    loss: Tensor | None = None
    losses: Losses | None = None
    logits: Tensor | None = None  # (N, T, vocabulary without <image>)
    masks: list[Tensor] | None = None  # per image (n_i, height, width) float32 logits, original size
    last_hidden_state: Tensor | None = None  # (N, T, hidden_dim)


@dataclass(frozen=True, kw_only=True)
class Segmentation:
    """Answer to one complex query."""

    names: tuple[str, ...]  # the classes asked for, in order
    present: list[bool]  # one for each name
    probabilities: list[float]  # of being present, one for each name
    masks: Tensor  # (num_present, height, width) float32 logits, for the present names in order
    num_passes: int  # of the language model over the answer

    @property
    def present_names(self) -> tuple[str, ...]:
        """The names that `masks` belong to."""
        return tuple(name for name, present in zip(self.names, self.present, strict=True) if present)


@dataclass(frozen=True, kw_only=True)
class ChatAnswer:
    """Answer in words, with a mask for each of its [SEG]."""

    text: str
    masks: Tensor  # (num_seg, height, width) float32 logits
    token_ids: list[int]  # as generated, with the end token when it came
    mentions: tuple[
        tuple[str, bool], ...
    ] = ()  # (name, present?) of each SEG and NEG; those present have masks
