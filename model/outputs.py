"""Outputs of the model and of its image encoders, as named tensors with their shapes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from transformers.utils import ModelOutput

from model.backbones.base import ImageFeatures
from model.decoders.decoded import Instances
from model.exports import Exportable, FoundMask
from model.inputs import Levels, Size
from model.losses import Losses
from model.text.placeholder import Placeholder
from model.token_grid import TokenGrid, place_in_image


@dataclass(frozen=True, kw_only=True, eq=False)
class EncodedImage:
    """An image encoded by both encoders: the result of `model.encode`, accepted wherever an image is.

    The language model's keys and values of the image are not part of it: they would be 300 MB for a 7B model, and
    answers on top of them differ in their last bits from those of one pass.
    """

    features: ImageFeatures  # of one image, for the language model
    placeholder: Placeholder  # what stands for it in the text
    token_grid: TokenGrid  # where its tokens lie
    embedding: tuple[Tensor, ...]  # each level (channels, height, width) for the mask decoder
    resized_size: Size
    original_size: Size


@dataclass(frozen=True, kw_only=True)
class EncodedImages:
    """B images encoded by both encoders, once for all conversations about them."""

    features: ImageFeatures  # of B images, for the language model
    placeholders: tuple[Placeholder, ...]  # B, what stands for each in the text
    token_grids: tuple[TokenGrid, ...]  # B, where its tokens lie
    embeddings: Levels  # for the mask decoder
    resized_sizes: tuple[Size, ...]
    original_sizes: tuple[Size, ...]

    def __len__(self) -> int:
        return len(self.original_sizes)

    @property
    def device(self) -> torch.device:
        """Where the embeddings are."""
        return self.embeddings[0].device

    def __getitem__(self, index: int) -> EncodedImage:
        """One image of the batch; IndexError past the end."""
        return EncodedImage(
            features=self.features.select([index]),
            placeholder=self.placeholders[index],
            token_grid=self.token_grids[index],
            embedding=tuple(level[index] for level in self.embeddings),
            resized_size=self.resized_sizes[index],
            original_size=self.original_sizes[index],
        )

    @classmethod
    def of(cls, images: Sequence[EncodedImage]) -> EncodedImages:
        """A batch of images that were encoded before, together or separately."""
        return cls(
            features=ImageFeatures.join([image.features for image in images]),
            placeholders=tuple(image.placeholder for image in images),
            token_grids=tuple(image.token_grid for image in images),
            embeddings=tuple(
                torch.stack(levels) for levels in zip(*(image.embedding for image in images), strict=True)
            ),
            resized_sizes=tuple(image.resized_size for image in images),
            original_sizes=tuple(image.original_size for image in images),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class SimilarityMaps:
    """How similar each [SEG] is to the tokens of its image: what the spatial prompt gives to the mask decoder."""

    logits: Tensor  # (n, grid rows, grid columns) float32
    grid: TokenGrid  # where they lie in the image

    def probabilities(self, size: Size) -> Tensor:
        """(n, height, width) float32 in 0..1 at the size of the image; NaN what the language model does not see."""
        place = place_in_image(self.grid, size, self.logits.device)
        seen = place(torch.ones_like(self.logits[:1])) > 0
        return place(self.logits).sigmoid().where(seen, torch.nan)

    def __getitem__(self, order: list[int]) -> SimilarityMaps:
        """Some of them, in this order."""
        return replace(self, logits=self.logits[order])

    def merged(self, groups: Sequence[Sequence[int]]) -> SimilarityMaps:
        """One map for each group of maps: the largest value of each cell."""
        logits = [self.logits[list(group)].amax(0) for group in groups]
        return replace(self, logits=torch.stack(logits) if logits else self.logits[:0])

    @classmethod
    def joined(cls, parts: Sequence[SimilarityMaps | None]) -> SimilarityMaps | None:
        """Those of several answers about one image; None without a spatial prompt."""
        known = [part for part in parts if part is not None]
        if not known:
            return None
        return replace(known[0], logits=torch.cat([part.logits for part in known]))


@dataclass
class LasagnaOutput(ModelOutput):
    """Outputs of `LasagnaForConditionalGeneration.forward`; B images, N conversations of T tokens.

    With labels there are losses, and no logits and masks unless they are asked for.
    """

    loss: Tensor | None = None
    losses: Losses | None = None
    logits: Tensor | None = None  # (N, T, tokens that can be written)
    masks: list[Tensor] | None = None  # per image (n_i, height, width) float32 logits, original size
    last_hidden_state: Tensor | None = None  # (N, T, hidden_dim)


@dataclass(frozen=True, kw_only=True)
class Segmentation(Exportable):
    """Answer to one complex query. `to_coco` and other forms for other programs: model/exports.py."""

    names: tuple[str, ...]  # the classes asked for, in order
    present: list[bool]  # one for each name
    probabilities: list[float]  # of being present, one for each name
    masks: Tensor  # (num_present, height, width) float32 logits, for the present names in order
    num_passes: int  # of the language model over the answer
    # Of a freely generated answer, the words before each mask that names none of the classes ("it is"): such masks
    # are dropped, and whether a class without a mask is absent is then unknown.
    unattributed: tuple[str, ...] = ()
    # The single objects, in the order of the present names, where the model tells them apart; None: it does not, and
    # instances are the connected parts of `masks` (model/exports.py: `instances_of`).
    instances: tuple[FoundMask, ...] | None = None
    # Of a model with a concept head: one for each name, the probability that its detector sees the class.
    presence: list[float] | None = None
    # (num_names, hidden_dim) the states that decided on each name, for `model.rethreshold`; None of a free answer.
    states: Tensor | None = field(default=None, repr=False)
    # (tokens of the image's grid, hidden_dim) with a spatial prompt, for the same.
    image_states: Tensor | None = field(default=None, repr=False)
    maps: SimilarityMaps | None = field(default=None, repr=False)  # one for each mask, with a spatial prompt

    @property
    def present_names(self) -> tuple[str, ...]:
        """The names that `masks` belong to."""
        return tuple(name for name, present in zip(self.names, self.present, strict=True) if present)

    def labels_and_probabilities(self) -> list[tuple[str, float | None]]:
        """For each mask its class and the probability that the class is present."""
        rows = zip(self.names, self.present, self.probabilities, strict=True)
        return [(name, probability) for name, present, probability in rows if present]

    def own_instances(self) -> Sequence[FoundMask] | None:
        """`instances`."""
        return self.instances

    def _categories(self) -> Sequence[str]:
        return list(dict.fromkeys(self.names))


@dataclass(frozen=True, kw_only=True)
class ChatAnswer(Exportable):
    """Answer in words, with a mask for each of its [SEG]. `to_coco` and other forms: model/exports.py."""

    text: str
    masks: Tensor  # (num_seg, height, width) float32 logits
    token_ids: list[int]  # as generated, with the end token when it came
    mentions: tuple[
        tuple[str, bool], ...
    ] = ()  # (name, present?) of each SEG and NEG; those present have masks
    maps: SimilarityMaps | None = field(default=None, repr=False)  # one for each mask, with a spatial prompt
    instances: tuple[Instances, ...] | None = None  # of a concept head, one for each mask

    def labels_and_probabilities(self) -> list[tuple[str, float | None]]:
        """For each mask the words before it, such as "the red car" or "it is"; the probability is unknown."""
        return [(name, None) for name, present in self.mentions if present]

    def own_instances(self) -> Sequence[FoundMask] | None:
        """`instances`, with the words before each mask."""
        return objects_of(self.labels_and_probabilities(), self.instances)


def objects_of(
    labels: Sequence[tuple[str, float | None]], instances: Sequence[Instances] | None
) -> tuple[FoundMask, ...] | None:
    """The instances of masks under the label and with the probability of each mask; None where there are none."""
    if instances is None:
        return None
    return tuple(
        FoundMask(label=label, pixels=pixels, probability=probability, score=score, index=index)
        for index, ((label, probability), of_mask) in enumerate(zip(labels, instances, strict=True))
        for pixels, score in zip(of_mask.masks.numpy(), of_mask.scores.tolist(), strict=True)
    )
