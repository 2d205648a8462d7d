"""LasagnaConfig: everything that changes what the weights mean, stored beside them as config.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from model.choices import ASPECT_RATIOS, check_spatial
from model.decoders.base import DecoderSettings
from model.decoders.build import decoder_settings, head_of
from model.errors import UserError
from model.files import read_json
from model.losses import DEFAULT_WEIGHTS
from model.text.format import DEFAULT_NUM_ALL_CLASSES, SequenceFormat
from model.text.templates import PROMPTS

# Pixel statistics of OpenAI's CLIP, for values in 0..1.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

# Entries without which config.json does not say what its weights are: a default model of 7B would be built.
NEEDED = ("vlm_config", "sequence_format", "image_token_id", "seg_token_id")


class LasagnaConfig(PreTrainedConfig):
    """Configuration of `LasagnaForConditionalGeneration`.

    Args:
        vlm_config: configuration of the vision-language model; its `model_type` says which (LLaVA if none).
        sam_config: the mask decoder: its `kind` (SAM if none) and the fields of its settings.
        sequence_format: `SequenceFormat.to_dict()`: how complex queries are written, and with which tokens.
        prompt: name of the prompt template.
        num_all_classes: maximum number of classes of one complex query, in training and inference.
        image_token_id, seg_token_id, neg_token_id: rows of the vocabulary; LISA has no `neg_token_id`.
        image_aspect_ratio: "square" crops the image for CLIP, "pad" pads it to a square first, "stretch" squashes it.
        clip_mean, clip_std: pixel statistics for CLIP, for values in 0..1.
        loss_weights: factor of each term of `Losses` in the training loss.
        spatial_prompt, num_latent_prompts: see model/spatial_prompt.py; off in the paper.
    """

    model_type = "lasagna"
    sub_configs = {"vlm_config": AutoConfig}  # noqa: RUF012

    def __init__(
        self,
        vlm_config: dict[str, Any] | PreTrainedConfig | None = None,
        sam_config: dict[str, Any] | None = None,
        sequence_format: dict[str, Any] | None = None,
        prompt: str = "llava_v1",
        num_all_classes: int = DEFAULT_NUM_ALL_CLASSES,
        image_token_id: int | None = None,
        seg_token_id: int | None = None,
        neg_token_id: int | None = None,
        image_aspect_ratio: str = "square",
        clip_mean: tuple[float, float, float] = CLIP_MEAN,
        clip_std: tuple[float, float, float] = CLIP_STD,
        loss_weights: dict[str, float] | None = None,
        spatial_prompt: bool = False,
        num_latent_prompts: int = 0,
        **kwargs: Any,
    ) -> None:
        if vlm_config is None:
            vlm_config = {"model_type": "llava"}
        if isinstance(vlm_config, dict):
            fields = dict(vlm_config)
            vlm_config = CONFIG_MAPPING[fields.pop("model_type", "llava")](**fields)
        vlm: PreTrainedConfig = vlm_config
        for part in (vlm, vlm.text_config, vlm.vision_config):
            part._name_or_path = ""  # the folder that it was read from says nothing on another machine
        self.vlm_config = vlm
        self.sam_config = decoder_settings(sam_config).to_dict()
        self.sequence_format = sequence_format
        if prompt not in PROMPTS:
            raise UserError(f"unknown prompt {prompt!r} in config.json; known: {', '.join(sorted(PROMPTS))}")
        self.prompt = prompt
        if type(num_all_classes) is not int or num_all_classes < 1:
            raise UserError(f"num_all_classes must be at least 1, got {num_all_classes!r}")
        self.num_all_classes = num_all_classes
        self.image_token_id = image_token_id
        self.seg_token_id = seg_token_id
        self.neg_token_id = neg_token_id
        if image_aspect_ratio not in ASPECT_RATIOS:
            known = ", ".join(ASPECT_RATIOS)
            raise UserError(f"image_aspect_ratio must be one of {known}, got {image_aspect_ratio!r}")
        self.image_aspect_ratio = image_aspect_ratio
        self.clip_mean = list(clip_mean)
        self.clip_std = list(clip_std)
        self.loss_weights = {**DEFAULT_WEIGHTS, **(loss_weights or {})}
        check_spatial(spatial_prompt, num_latent_prompts, self.mask_head)
        self.spatial_prompt = spatial_prompt
        self.num_latent_prompts = num_latent_prompts
        super().__init__(**kwargs)

    @property
    def format(self) -> SequenceFormat:
        """How complex queries are written; ValueError for a config that was made without."""
        if self.sequence_format is None:
            raise ValueError("this config has no sequence_format; pass SequenceFormat.named(...).to_dict()")
        return SequenceFormat.from_dict(self.sequence_format)

    @property
    def num_logits(self) -> int:
        """Tokens that the model can write: the rows of the vocabulary; LLaVA's but for `<image>`, the last one."""
        assert self.image_token_id is not None, "the configuration of a model that was built"
        return self.image_token_id if self.is_llava else self.vlm_config.text_config.vocab_size

    @property
    def is_llava(self) -> bool:
        """Whether the backbone is a LLaVA with CLIP, as in the paper, rather than another model."""
        return self.vlm_config.model_type == "llava"

    @property
    def sam_settings(self) -> DecoderSettings:
        """The sizes of the mask decoder."""
        return decoder_settings(self.sam_config)

    @property
    def mask_head(self) -> str:
        """What draws the masks: "sam", one mask for each [SEG], or "concept", which also finds instances."""
        return head_of(self.sam_settings)


def check_stored(folder: Path) -> None:
    """Raises a UserError unless the config.json of a LaSagnA folder has what `LasagnaConfig` has no defaults for."""
    content = read_json(folder / "config.json")
    missing = [name for name in NEEDED if content.get(name) is None]
    if missing:
        raise UserError(
            f"{folder}/config.json has no {', '.join(missing)}; copy config.json from where the weights come from"
        )


AutoConfig.register(LasagnaConfig.model_type, LasagnaConfig, exist_ok=True)
