"""The kinds of mask decoders: settings from config.json, and the module from its settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from model.choices import CONCEPT_HEAD, SAM_HEAD
from model.decoders import concept_settings, sam2
from model.decoders.base import BatchedDecoder, DecoderSettings
from model.decoders.concept import ConceptSegmenter
from model.decoders.concept_settings import ConceptSettings
from model.decoders.sam import SamSegmenter, SamSettings
from model.decoders.sam2 import Sam2Segmenter, Sam2Settings
from model.errors import UserError
from model.huggingface import readable

KINDS = ("sam", *sam2.KINDS, concept_settings.KIND)


def decoder_settings(stored: Mapping[str, Any] | None) -> DecoderSettings:
    """The settings that `DecoderSettings.to_dict` wrote; without `kind` it is a SAM, by default ViT-H.

    Raises:
        UserError: the kind is unknown, or the sizes do not belong together.
    """
    fields = dict(stored or {})
    kind = fields.get("kind", "sam")
    if kind not in KINDS:
        raise UserError(f"unknown mask decoder {kind!r} in sam_config; known: {', '.join(KINDS)}")
    with readable(f"a mask decoder of kind {kind!r}", "sam_config"):
        if kind == concept_settings.KIND:
            return ConceptSettings(**fields)
        if kind != "sam":
            return Sam2Settings(**fields)
        fields.pop("kind", None)
        return SamSettings(**fields)


def build_decoder(settings: DecoderSettings) -> BatchedDecoder:
    """A mask decoder with random weights.

    Raises:
        UserError: there is none of these sizes.
    """
    with readable(settings.title, "the settings of the mask decoder (--vision_pretrained, or sam_config)"):
        if isinstance(settings, ConceptSettings):
            return ConceptSegmenter(settings)
        if isinstance(settings, Sam2Settings):
            return Sam2Segmenter(settings)
        assert isinstance(settings, SamSettings), f"settings of kind {settings.kind!r}"
        return SamSegmenter(settings)


def head_of(settings: DecoderSettings) -> str:
    """What --mask_head calls a decoder."""
    return CONCEPT_HEAD if settings.kind == concept_settings.KIND else SAM_HEAD
