"""SAM 3's detector of concepts as Hugging Face stores it: alone (`sam3`), or beside the tracker (`sam3_video`).

Its text encoder, for which the language model's states stand in, and its encoder of boxes are not read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from model.decoders.concept_settings import MEAN, SECTIONS, STD, ConceptSettings
from model.errors import UserError
from model.files import read_json
from model.plausible import check_entries

DETECTOR = "detector_model."
UNUSED = re.compile(r"(tracker_model|tracker_neck|text_encoder|text_projection|geometry_encoder)\.")


def read_detector(folder: Path, weights: Mapping[str, Tensor]) -> tuple[ConceptSettings, dict[str, Tensor]]:
    """Sizes and weights of the detector.

    Raises:
        UserError: config.json describes none.
    """
    named = {name.removeprefix(DETECTOR): value for name, value in weights.items()}
    kept = {name: value for name, value in named.items() if not UNUSED.match(name)}
    return detector_settings(folder), kept


def detector_settings(folder: Path) -> ConceptSettings:
    """The settings that a folder's config.json and preprocessor_config.json say."""
    content = read_json(folder / "config.json")
    content = content.get("detector_config", content)
    pixels = read_json(folder / "preprocessor_config.json")
    try:
        settings = ConceptSettings(
            **{name: content[name] for name in SECTIONS if name in content},
            pixel_mean=pixels.get("image_mean") or MEAN,
            pixel_std=pixels.get("image_std") or STD,
        )
    except (UserError, TypeError, AttributeError) as error:
        raise UserError(f"{folder}/config.json: {error}") from error
    check_entries(folder / "config.json", settings.to_dict())
    return settings
