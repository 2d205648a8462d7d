"""From the choices about classes to their masks and, of a concept head, presence and instances."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import Tensor

from model.decoders.decoded import Instances
from model.generation.decoding import of_present
from model.mask_path import FoundMasks
from model.outputs import EncodedImages, Segmentation, objects_of

if TYPE_CHECKING:
    from model.lasagna import LasagnaForConditionalGeneration


def find(
    model: LasagnaForConditionalGeneration,
    states: Sequence[Tensor],
    present: Sequence[Sequence[bool]],
    images: EncodedImages,
    image_states: Sequence[Tensor] | None,
    min_score: float,
) -> list[FoundMasks]:
    """The masks of the present classes of each image; the presence that a concept head sees is of all its classes.

    Args:
        states: for each image those of all its classes, see `ComplexAnswer.states`.
        present: for each image whether each class has a mask.
        image_states: as for `MaskPathMixin.decode_masks`.
        min_score: instances have a higher score.
    """
    owners = range(len(images))
    chosen = [of_present(*each) for each in zip(states, present, strict=True)]
    found = model.decode_found(chosen, images, owners, image_states, min_score)
    if not model.sam.has_presence:
        return found
    others = [
        of_present(of_image, [not one for one in said])
        for of_image, said in zip(states, present, strict=True)
    ]
    absent = model.decode_presence(others, images, owners)
    return [
        replace(one, presence=in_order(said, one.presence or [], logits.sigmoid().tolist()))
        for said, one, logits in zip(present, found, absent, strict=True)
    ]


def in_order(present: Sequence[bool], of_those: Sequence[float], of_others: Sequence[float]) -> list[float]:
    """The values of the present classes and those of the others, in the order of all classes."""
    here, missing = iter(of_those), iter(of_others)
    return [next(here if is_present else missing) for is_present in present]


def with_instances(answer: Segmentation, instances: Sequence[Instances] | None) -> Segmentation:
    """The answer with the instances that a concept head found for each of its masks."""
    return replace(answer, instances=objects_of(answer.labels_and_probabilities(), instances))
