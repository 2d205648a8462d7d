"""The kinds of mask decoders: settings from config.json, and the module from its settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from model.decoders.base import BatchedDecoder, DecoderSettings
from model.decoders.sam import SamSegmenter, SamSettings
from model.errors import UserError

KINDS = ("sam",)


def decoder_settings(stored: Mapping[str, Any] | None) -> DecoderSettings:
    """The settings that `DecoderSettings.to_dict` wrote; without `kind` it is a SAM, by default ViT-H.

    Raises:
        UserError: the kind is unknown.
    """
    fields = dict(stored or {})
    kind = fields.pop("kind", "sam")
    if kind not in KINDS:
        raise UserError(f"unknown mask decoder {kind!r} in sam_config; known: {', '.join(KINDS)}")
    return SamSettings(**fields)


def build_decoder(settings: DecoderSettings) -> BatchedDecoder:
    """A mask decoder with random weights."""
    assert isinstance(settings, SamSettings)
    return SamSegmenter(settings)
