"""The sizes of SAM 3's detector, as sections of transformers' `Sam3Config`."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from transformers import PreTrainedConfig, Sam3Config

from model.decoders.pixels import check_statistics
from model.decoders.sam2_config import plain, side_of
from model.decoders.transform import SQUARE
from model.errors import UserError
from model.huggingface import configuration

KIND = "sam3"
TITLE = "SAM 3's concept head"
SECTIONS = ("vision_config", "detr_encoder_config", "detr_decoder_config", "mask_decoder_config")
MEAN = STD = (0.5, 0.5, 0.5)  # of pixels in 0..1, as in its image processor
SCALES = [4.0, 2.0, 1.0, 0.5]  # of the neck's levels; masks need all but the coarsest
NUM_LEVELS = 3
GROUPS = 8  # of the normalisation of pixel features
STATES_PER_CLASS = 16  # of a class name that is longer, the last ones
MAX_STATES = 1024


@dataclass(frozen=True, kw_only=True)
class ConceptSettings:
    """Sizes of SAM 3's detector: the sections of transformers' `Sam3Config`; {} means its defaults.

    Raises:
        UserError: the sections do not belong together, or are none of such a configuration.
    """

    kind: str = KIND
    vision_config: dict[str, Any] = field(default_factory=dict)
    detr_encoder_config: dict[str, Any] = field(default_factory=dict)
    detr_decoder_config: dict[str, Any] = field(default_factory=dict)
    mask_decoder_config: dict[str, Any] = field(default_factory=dict)
    pixel_mean: tuple[float, ...] = MEAN
    pixel_std: tuple[float, ...] = STD
    states_per_class: int = STATES_PER_CLASS

    def __post_init__(self) -> None:
        for name in SECTIONS:
            if not isinstance(getattr(self, name), Mapping):
                raise UserError(f"{name} of sam_config is {getattr(self, name)!r}, not an object")
            object.__setattr__(self, name, plain(getattr(self, name)))
        complete = self.config.to_dict()  # with the defaults of what is left out
        for name in SECTIONS:
            object.__setattr__(self, name, plain(complete[name]))
        for name in ("pixel_mean", "pixel_std"):
            object.__setattr__(self, name, check_statistics(name, getattr(self, name)))
        if type(self.states_per_class) is not int or not 1 <= self.states_per_class <= MAX_STATES:
            raise UserError(
                f"states_per_class of sam_config is {self.states_per_class!r}; it is a number from 1 to {MAX_STATES}"
            )
        self._check()

    def _check(self) -> None:
        config, vision = self.config, self.config.vision_config
        width, queries = self.prompt_embed_dim, config.detr_decoder_config.num_queries
        facts = (
            ("levels of the neck", list(vision.scale_factors), SCALES),
            ("width of the features", vision.fpn_hidden_size, width),
            ("width of the DETR decoder", config.detr_decoder_config.hidden_size, width),
            ("width of the mask decoder", config.mask_decoder_config.hidden_size, width),
            ("remainder of that width by 8", width % GROUPS, 0),
            ("remainder of the image's side by a patch's", self.image_size % self._patch, 0),
        )
        wrong = [
            f"the {name} is {found}, and must be {expected}"
            for name, found, expected in facts
            if found != expected
        ]
        stages = config.mask_decoder_config.num_upsampling_stages
        if stages < NUM_LEVELS - 1:
            wrong.append(f"{stages} upsampling stages, and there must be {NUM_LEVELS - 1} or more")
        if queries < 1:
            wrong.append(f"{queries} queries, and there must be one or more")
        if vision.backbone_config.window_size > self.mask_side:
            wrong.append(
                f"a window of {vision.backbone_config.window_size} cells is larger than the image, of "
                f"{self.mask_side}"
            )
        for name in SECTIONS[1:]:
            heads = getattr(config, name).num_attention_heads
            if width % heads:
                wrong.append(f"{heads} heads of {name} do not divide the width {width}")
        if wrong:
            raise UserError(f"the settings of {self.title} do not agree: {'; '.join(wrong)}")

    @cached_property
    def config(self) -> PreTrainedConfig:
        """The library's configuration; not to be changed."""
        sections = {name: deepcopy(getattr(self, name)) for name in SECTIONS}
        vision = sections["vision_config"]
        vision["backbone_config"] = {**vision.get("backbone_config", {}), "model_type": "sam3_vit_model"}
        return configuration(Sam3Config, "sam_config", **sections)

    @property
    def _patch(self) -> int:
        return side_of(self.config.vision_config.backbone_config.patch_size)

    @property
    def title(self) -> str:
        return TITLE

    @property
    def image_size(self) -> int:
        return side_of(self.config.vision_config.backbone_config.image_size)

    @property
    def resize(self) -> str:
        return SQUARE

    @property
    def grid_size(self) -> tuple[int, int]:
        return (self.image_size // self._patch,) * 2

    @property
    def mask_side(self) -> int:
        return 4 * self.grid_size[0]

    @property
    def prompt_embed_dim(self) -> int:
        return self.config.detr_encoder_config.hidden_size

    @property
    def embedding_shapes(self) -> tuple[tuple[int, int, int], ...]:
        return ((self.config.vision_config.backbone_config.hidden_size, *self.grid_size),)

    def to_dict(self) -> dict[str, Any]:
        pixels = {name: list(getattr(self, name)) for name in ("pixel_mean", "pixel_std")}
        sections = {name: deepcopy(getattr(self, name)) for name in SECTIONS}
        return {"kind": self.kind, **sections, **pixels, "states_per_class": self.states_per_class}
