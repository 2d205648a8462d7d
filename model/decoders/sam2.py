"""SAM 2, and the tracker of SAM 3, as mask decoders: the modules of transformers' `Sam2Model` and `Sam3TrackerModel`.

They differ from SAM in what surrounds the same two-way transformer: the image is squashed to a square, the encoder
gives three levels of features, of which the two finer ones are added while masks are upsampled, and masks are
interpolated once. Weights of the video memory are not read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import (
    PreTrainedConfig,
    Sam2Config,
    Sam2Model,
    Sam3TrackerConfig,
    Sam3TrackerModel,
)

from model.decoders.base import BatchedDecoder, MaskPrompts
from model.decoders.pixels import check_statistics, normalized
from model.decoders.sam2_config import (
    HIERA,
    NUM_LEVELS,
    VIT,
    levels_of,
    plain,
    pooled_blocks,
    side_of,
    stride_of,
    windows_of,
)
from model.decoders.sam_mask_decoder import FusedFineMaskDecoder
from model.decoders.transform import SQUARE
from model.errors import UserError
from model.huggingface import configuration
from model.inputs import Levels, Size

SECTIONS = ("vision_config", "prompt_encoder_config", "mask_decoder_config")


@dataclass(frozen=True)
class Kind:
    """What tells the decoders of this file apart."""

    title: str
    config: type[PreTrainedConfig]
    model: type[nn.Module]
    backbone: str  # model_type of the vision encoder's backbone
    vision: str  # model_type of the vision encoder
    mean: tuple[float, float, float]  # of pixels in 0..1, as in their image processors
    std: tuple[float, float, float]


KINDS = {
    "sam2": Kind(
        "SAM 2", Sam2Config, Sam2Model, "sam2_hiera_det_model", HIERA,
        (0.485, 0.456, 0.406), (0.229, 0.224, 0.225),
    ),
    "sam3_tracker": Kind(
        "SAM 3's tracker", Sam3TrackerConfig, Sam3TrackerModel, "sam3_vit_model", VIT,
        (0.5, 0.5, 0.5), (0.5, 0.5, 0.5),
    ),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Sam2Settings:
    """Sizes of a SAM 2 or of SAM 3's tracker: the sections of transformers' configuration; {} means its defaults.

    Raises:
        UserError: the sections do not belong together, or are none of such a configuration.
    """

    kind: str = "sam2"
    vision_config: dict[str, Any] = field(default_factory=dict)
    prompt_encoder_config: dict[str, Any] = field(default_factory=dict)
    mask_decoder_config: dict[str, Any] = field(default_factory=dict)
    pixel_mean: tuple[float, ...] | None = None  # of pixels in 0..1; None: those that it was trained with
    pixel_std: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        kind = KINDS[self.kind]
        for name in SECTIONS:
            if not isinstance(getattr(self, name), Mapping):
                raise UserError(f"{name} of sam_config is {getattr(self, name)!r}, not an object")
            object.__setattr__(self, name, plain(getattr(self, name)))
        # In evaluation the library would exchange an unstable mask for another output, which training never does.
        self.mask_decoder_config["dynamic_multimask_via_stability"] = False
        complete = self.config.to_dict()  # with the defaults of what is left out
        values = {name: plain(complete[name]) for name in SECTIONS} | {
            "pixel_mean": check_statistics("pixel_mean", self.pixel_mean or kind.mean),
            "pixel_std": check_statistics("pixel_std", self.pixel_std or kind.std),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)
        self._check()

    def _check(self) -> None:
        config, vision = self.config, self.config.vision_config
        facts = (
            ("side of the backbone's image", side_of(vision.backbone_config.image_size), self.image_size),
            ("pixels of a cell of the backbone's coarsest level", stride_of(vision), self._prompt.patch_size),
            ("levels of features", levels_of(vision), NUM_LEVELS),
            ("width of the features", vision.fpn_hidden_size, self.prompt_embed_dim),
            ("width of the mask decoder", config.mask_decoder_config.hidden_size, self.prompt_embed_dim),
        )
        wrong = [
            f"the {name} is {found}, and must be {expected}"
            for name, found, expected in facts
            if found != expected
        ]
        windows, starts = windows_of(vision), pooled_blocks(vision)
        if windows and max(windows) > self.mask_side:
            wrong.append(f"a window of {max(windows)} cells is larger than the image, of {self.mask_side}")
        if starts:
            wrong.append(
                f"block {starts[0]} begins a stage and attends globally, which the library cannot compute"
            )
        if wrong:
            raise UserError(f"the settings of {self.title} do not agree: {'; '.join(wrong)}")

    @cached_property
    def config(self) -> PreTrainedConfig:
        """The library's configuration; not to be changed."""
        kind, sections = KINDS[self.kind], {name: deepcopy(getattr(self, name)) for name in SECTIONS}
        vision = sections["vision_config"]
        vision["model_type"] = kind.vision
        vision["backbone_config"] = {**vision.get("backbone_config", {}), "model_type": kind.backbone}
        return configuration(kind.config, "sam_config", **sections)

    @property
    def _prompt(self) -> PreTrainedConfig:
        return self.config.prompt_encoder_config

    @property
    def title(self) -> str:
        return KINDS[self.kind].title

    @property
    def image_size(self) -> int:
        return side_of(self._prompt.image_size)

    @property
    def resize(self) -> str:
        return SQUARE

    @property
    def grid_size(self) -> tuple[int, int]:
        return (self.image_size // self._prompt.patch_size,) * 2

    @property
    def mask_side(self) -> int:
        return 4 * self.grid_size[0]

    @property
    def prompt_embed_dim(self) -> int:
        return self._prompt.hidden_size

    @property
    def embedding_shapes(self) -> tuple[tuple[int, int, int], ...]:
        dim, side = self.prompt_embed_dim, self.grid_size[0]
        return (dim // 8, 4 * side, 4 * side), (dim // 4, 2 * side, 2 * side), (dim, side, side)

    def to_dict(self) -> dict[str, Any]:
        pixels = {name: list(getattr(self, name)) for name in ("pixel_mean", "pixel_std")}
        return {"kind": self.kind, **{name: deepcopy(getattr(self, name)) for name in SECTIONS}, **pixels}


class Sam2Segmenter(BatchedDecoder):
    """The parts of a `Sam2Model` or `Sam3TrackerModel`, under the names that they have there."""

    # Not used and without gradient: the predictions of a mask's quality and of presence. `conv_s0` and `conv_s1`
    # run in `encode`: trained, they would make cached embeddings stale.
    trainable_pattern = r"mask_decoder\.(?!(iou_prediction_head|pred_obj_score_head|conv_s[01])\.).*"
    mask_prompt_pattern = r"prompt_encoder\.mask_embed\..*"

    def __init__(self, settings: Sam2Settings) -> None:
        super().__init__()
        parts = KINDS[settings.kind].model(deepcopy(settings.config))
        self.settings: Sam2Settings = settings
        self.shared_image_embedding = parts.shared_image_embedding
        self.vision_encoder = parts.vision_encoder
        self.prompt_encoder = parts.prompt_encoder
        self.mask_decoder = FusedFineMaskDecoder(parts.mask_decoder)
        self.no_memory_embedding = parts.no_memory_embedding
        # Positions stay in float32 where the model is built in bfloat16, as `from_pretrained` does.
        for module in self.modules():
            for name, value in module._buffers.items():
                if value is not None:
                    module._buffers[name] = value.float()

    @torch.no_grad()
    def encode(self, images: Tensor, resized_sizes: Sequence[Size]) -> Levels:
        """Three levels of features, as `get_image_embeddings` gives them.

        Args:
            images: (B, 3, image_size, image_size) uint8 RGB.
            resized_sizes: not needed: every image fills the square.

        Returns:
            (B, C / 8, 4 grid, 4 grid), (B, C / 4, 2 grid, 2 grid), (B, C, grid, grid) with C = prompt_embed_dim.
        """
        settings = self.settings
        assert settings.pixel_mean, "filled in by the settings"
        assert settings.pixel_std, "filled in by the settings"
        pixels = normalized(
            images, settings.image_size, settings.pixel_mean, settings.pixel_std, settings.title
        ).to(self.no_memory_embedding.dtype)
        # SAM 3 has a fourth, coarser level, which only its detector reads.
        fine, middle, coarse = self.vision_encoder(pixels).fpn_hidden_states[:NUM_LEVELS]
        levels = (
            self.mask_decoder.conv_s0(fine),
            self.mask_decoder.conv_s1(middle),
            coarse + self.no_memory_embedding.view(1, -1, 1, 1),
        )
        # One layout in memory, so that levels from a cache give the same masks to the last bit.
        return tuple(level.contiguous() for level in levels)

    def dense_positions(self, like: Tensor) -> Tensor:
        """Dense positional encoding (1, prompt_embed_dim, grid, grid), dtype and device as `like`."""
        layer, side = self.shared_image_embedding, self.settings.grid_size[0]
        matrix = layer.positional_embedding.float()
        centres = (torch.arange(side, device=matrix.device) + 0.5) / side
        places = torch.stack(
            torch.meshgrid(centres, centres, indexing="ij")[::-1], dim=-1
        )  # (grid, grid, 2): x, y
        positions = functional_call(layer, {"positional_embedding": matrix}, (places,))
        return positions.permute(2, 0, 1).unsqueeze(0).to(like)

    def low_res_masks(
        self, prompts: Tensor, levels: Levels, positions: Tensor, dense: MaskPrompts | None
    ) -> Tensor:
        """See `BatchedDecoder`."""
        mask_prompt = self.prompt_encoder.no_mask_embed.weight.view(1, -1, 1, 1).to(prompts.dtype)
        if dense is not None:
            mask_prompt = dense.embeddings(self.prompt_encoder.mask_embed, mask_prompt)
        fine, middle, coarse = levels
        logits, _ = self.mask_decoder(prompts, coarse + mask_prompt, positions, fine, middle)
        return logits

    def encoder_tensors(self) -> dict[str, Tensor]:
        """See `MaskDecoder`."""
        parts = ("vision_encoder.", "mask_decoder.conv_s0.", "mask_decoder.conv_s1.", "no_memory_embedding")
        return {name: value for name, value in self.named_parameters() if name.startswith(parts)}

    @property
    def frozen_encoder(self) -> nn.Module:
        """See `MaskDecoder`."""
        return self.vision_encoder

    @property
    def encoder_blocks(self) -> list[nn.Module]:
        """See `MaskDecoder`."""
        backbone = self.vision_encoder.backbone
        return list(backbone.blocks if self.settings.kind == "sam2" else backbone.layers)
