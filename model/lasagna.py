"""LasagnaForConditionalGeneration: LLaVA answers a question about an image, SAM decodes a mask for each [SEG].

    vlm_images -> CLIP -> projector ---+
    input_ids -> embeddings -----------+-> LLaMA -> logits
                                             |
                             state before [SEG] -> seg_projector --+
    sam_images -> SAM image encoder ------------------------------+-> SAM mask decoder -> masks

Training and inference share this path; they differ only in where the tokens come from
(`model/generation/inference.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.profiler import record_function
from transformers import AutoModelForImageTextToText, PreTrainedModel

from model.backbones.clip_images import ClipImages
from model.backbones.mixin import BackboneMixin
from model.backbones.token_rows import TokenRows
from model.buffers import ExactBuffers
from model.config import LasagnaConfig, check_stored
from model.decoders.build import build_decoder
from model.errors import UserError
from model.folders import local_folder
from model.generation.inference import InferenceMixin
from model.huggingface import from_config, from_pretrained
from model.inputs import Levels, Size
from model.losses import (
    LOGITS_PER_CHUNK,
    learned_positions,
    segmentation_losses,
    text_cross_entropy,
)
from model.mask_path import MaskPathMixin, build_spatial_prompt
from model.outputs import EncodedImages, LasagnaOutput
from model.processor import FILE_NAME as PROCESSOR_FILE
from model.processor import LasagnaProcessor
from model.prompt_states import states_before
from model.strict_loading import check_loading_info
from model.text.placeholder import Placeholder
from model.token_grid import TokenGrid

CHUNKS_OF_DIVIDED_HEAD = 8  # chunks of the text loss under ZeRO-3, whatever its length


class LasagnaForConditionalGeneration(
    BackboneMixin, MaskPathMixin, InferenceMixin, ExactBuffers, PreTrainedModel
):
    """The whole model. `vlm` is a Hugging Face vision-language model (PEFT may wrap it), `sam` a `MaskDecoder`."""

    config: LasagnaConfig
    config_class = LasagnaConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    # Position matrices of the mask decoders.
    _keep_in_fp32_modules_strict = ["pe_layer", "shared_embedding", "shared_image_embedding"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True

    def __init__(self, config: LasagnaConfig) -> None:
        super().__init__(config)
        self.vlm = from_config(AutoModelForImageTextToText, config.vlm_config)
        self.sam = build_decoder(config.sam_settings)
        self.seg_projector = build_seg_projector(config)
        self.spatial_prompt = build_spatial_prompt(config)
        self.token_rows: TokenRows | None = None  # only in training, and not of every backbone
        self._processor: LasagnaProcessor | None = None
        self.post_init()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any):
        """Loads a folder written by `save_pretrained`, strictly, with its processor when the folder has one.

        Raises:
            ValueError: weights are missing, left over, or of another shape, or config.json is not complete.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        folder = local_folder(pretrained_model_name_or_path, flag="the model")
        check_stored(folder)
        # Names and shapes are reported below.
        kwargs |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
        model, info = from_pretrained(super(), folder, **kwargs)
        check_loading_info(info, source=str(folder))
        if (folder / PROCESSOR_FILE).is_file():
            model.processor = LasagnaProcessor.from_pretrained(folder)
        return (model, info) if wants_info else model

    def save_pretrained(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> None:
        """Writes the folder that `from_pretrained` reads: config, weights and, when attached, the processor.

        Raises:
            ValueError: there are adapters that are not merged.
        """
        if self.base_vlm is not self.vlm or self.token_rows is not None:
            raise ValueError(
                "the model has LoRA adapters; call model.lora.merge(model) before save_pretrained"
            )
        # Names as they are in the model: LLaVA's older names would depend on the version of transformers.
        kwargs.setdefault("save_original_format", False)
        super().save_pretrained(save_directory, *args, **kwargs)
        if self.has_processor:
            self.processor.save_pretrained(save_directory)

    @property
    def processor(self) -> LasagnaProcessor:
        """Tokenizer and image sizes; ValueError where the model was built without."""
        if self._processor is None:
            raise ValueError("this model has no processor; load it with load_model, or pass processor=")
        return self._processor

    @processor.setter
    def processor(self, processor: LasagnaProcessor | None) -> None:
        self._processor = processor

    def set_image_aspect_ratio(self, value: str) -> None:
        """What becomes of an image that is no square, for CLIP; with the processor's.

        Raises:
            UserError: the backbone is no LLaVA, whose images are squares.
        """
        images = self.processor.images
        if not isinstance(images, ClipImages):
            raise UserError(
                f"--image_aspect_ratio {value} is for a LLaVA; a {self.config.vlm_config.model_type} resizes images "
                "its own way: leave it out"
            )
        self.config.image_aspect_ratio = value
        self.processor = replace(self.processor, images=replace(images, image_aspect_ratio=value))

    @property
    def has_processor(self) -> bool:
        """Whether there is one."""
        return self._processor is not None

    def encode_images(
        self,
        vlm_images: Mapping[str, Tensor],
        placeholders: Sequence[Placeholder],
        token_grids: Sequence[TokenGrid],
        resized_sizes: Sequence[Size],
        original_sizes: Sequence[Size],
        sam_images: Tensor | None = None,
        sam_embeddings: Levels | None = None,
    ) -> EncodedImages:
        """Both encoders on a batch of images; arguments as in `forward`.

        Raises:
            ValueError: both or none of `sam_images` and `sam_embeddings` are given.
        """
        if (sam_images is None) == (sam_embeddings is None):
            given = "none" if sam_images is None else "both"
            raise ValueError(f"give either sam_images or sam_embeddings, exactly one of them; got {given}")
        if sam_embeddings is None:
            with record_function("sam encoder"):
                sam_embeddings = self.sam.encode(sam_images, resized_sizes)
        with record_function("clip"):
            features = self.image_features(vlm_images, placeholders)
        return EncodedImages(
            features=features,
            placeholders=tuple(placeholders),
            token_grids=tuple(token_grids),
            embeddings=sam_embeddings,
            resized_sizes=tuple(resized_sizes),
            original_sizes=tuple(original_sizes),
        )

    def forward(
        self,
        *,
        input_ids: Tensor,
        attention_mask: Tensor,
        vlm_images: Mapping[str, Tensor],
        placeholders: Sequence[Placeholder],
        token_grids: Sequence[TokenGrid],
        resized_sizes: Sequence[Size],
        original_sizes: Sequence[Size],
        image_of_row: Sequence[int],
        seg_rows: Tensor,
        seg_columns: Tensor,
        seg_images: Sequence[int],
        grid_places: Sequence[Tensor] = (),
        sam_images: Tensor | None = None,
        sam_embeddings: Levels | None = None,
        labels: Tensor | None = None,
        gt_masks: Sequence[Tensor] | None = None,
        learned_rows: Tensor | None = None,
        learned_columns: Tensor | None = None,
        seg_firsts: Tensor | None = None,
        neg_rows: Tensor | None = None,
        neg_columns: Tensor | None = None,
        neg_firsts: Tensor | None = None,
        neg_images: Sequence[int] = (),
        position_ids: Tensor | None = None,
        segment_ids: Tensor | None = None,
        return_predictions: bool = False,
    ) -> LasagnaOutput:
        """One pass over N conversations about B images: logits and masks or, with `labels`, the losses.

        The arguments are the fields of `ModelInputs`, which says what they hold: `model(**inputs.fields())`.

        Args:
            return_predictions: logits and masks beside the losses, which need neither as a whole.

        Raises:
            ValueError: both or none of `sam_images` and `sam_embeddings` are given.
        """
        images = self.encode_images(
            vlm_images,
            placeholders,
            token_grids,
            resized_sizes,
            original_sizes,
            sam_images=sam_images,
            sam_embeddings=sam_embeddings,
        )
        features = images.features.select(image_of_row)
        embeddings = self.embed(input_ids, features)
        if segment_ids is not None:
            attention_mask = self.backbone.packed_mask(input_ids, segment_ids, position_ids)
        with record_function("language model"):
            deep = self.backbone.deep(input_ids, features)
            states = self.language_states(embeddings, attention_mask, position_ids, deep=deep)
        # The state at t predicts token t + 1, and the prompt to SAM is the state that decided on [SEG].
        deciding = self._of_images(states, seg_rows, seg_columns, seg_firsts, seg_images, len(images))
        image_states = (
            None if self.spatial_prompt is None else [states.flatten(0, 1)[places] for places in grid_places]
        )
        with record_function("mask decoder"):
            found = self.decode_low_res(deciding, images, range(len(images)), image_states)
        # Here and not later: under ZeRO-3 all processes must call the parts in the same order.
        is_untouched = labels is not None and not seg_images
        untouched = self.untouched_parts(states, images, image_states) if is_untouched else 0.0
        output = LasagnaOutput(last_hidden_state=states)
        if labels is None or return_predictions:
            output.logits = self.text_logits(states)
            output.masks = self.at_original_size(found.masks, images, range(len(images)))
        if labels is not None:
            absent: tuple[Tensor, ...] = ()
            if self.sam.has_presence:
                absent = self._of_images(states, neg_rows, neg_columns, neg_firsts, neg_images, len(images))
            if learned_rows is None or learned_columns is None:
                learned_rows, learned_columns = learned_positions(labels)
            with record_function("losses"):
                output.losses = segmentation_losses(
                    self._text_loss(states, labels, learned_rows, learned_columns),
                    *self.mask_terms(found.masks, images, gt_masks),
                    self.config.loss_weights,
                    self.map_terms(found.maps, images, gt_masks),
                    self.presence_terms(found.presence, absent, images),
                )
            output.loss = output.losses.total + untouched
        return output

    def _of_images(
        self,
        states: Tensor,
        rows: Tensor | None,
        columns: Tensor | None,
        firsts: Tensor | None,
        owners: Sequence[int],
        num_images: int,
    ) -> tuple[Tensor, ...]:
        """For each image the states that prompt the mask decoder about its choices; see `states_before`."""
        if rows is None or columns is None:
            return ()
        found = states_before(states, rows, columns, firsts, self.sam.states_per_prompt)
        return found.split([owners.count(image) for image in range(num_images)])

    def _text_loss(self, states: Tensor, labels: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        # ZeRO-3 gathers the head's weight whenever it is called, which all processes must do equally often.
        is_divided = any(hasattr(weight, "ds_id") for weight in self.backbone.lm_head.parameters())
        num_logits = len(rows) * self.backbone.num_logits
        num_chunks = CHUNKS_OF_DIVIDED_HEAD if is_divided else max(1, -(-num_logits // LOGITS_PER_CHUNK))
        return text_cross_entropy(
            states[rows, columns - 1], labels[rows, columns], self.text_logits, num_chunks
        )


def build_seg_projector(config: LasagnaConfig) -> nn.Sequential:
    """Hidden states of the language model -> prompt embeddings of SAM."""
    hidden_dim = config.vlm_config.text_config.hidden_size
    return nn.Sequential(
        nn.Linear(hidden_dim, hidden_dim),
        nn.ReLU(),
        nn.Linear(hidden_dim, config.sam_settings.prompt_embed_dim),
    )


AutoModelForImageTextToText.register(LasagnaConfig, LasagnaForConditionalGeneration, exist_ok=True)
