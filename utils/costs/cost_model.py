"""What a training step or an answer costs, from the model's sizes and the shapes of a batch.

`python -m utils.costs.flops` prints it for a configuration; the formulas are those of utils/costs/flop_formulas.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from model.config import LasagnaConfig
from model.decoders.concept_settings import ConceptSettings
from model.inputs import ModelInputs, Size
from model.text.encoded import IGNORE_INDEX
from utils.config.training import TrainConfig
from utils.costs.decoder_flops import encoder_flops, mask_head_flops
from utils.costs.flop_formulas import (
    Flops,
    attention,
    layer_sizes,
    learned,
    linear,
    lora,
    mask_resize_flops,
    query_dim,
    total,
)
from utils.costs.vision_flops import connector_flops, pixel_bytes, tower_flops

COUNTED = ("images", "text_tokens", "model_flops")  # what a training step counts of each batch


@dataclass(frozen=True, kw_only=True)
class ImageShape:
    """Sizes of one image, (height, width), and its masks."""

    num_masks: int
    num_tokens: int  # in the language model
    resized_size: Size  # in SAM's input
    original_size: Size


@dataclass(frozen=True, kw_only=True)
class Work:
    """The shapes of one batch."""

    images: tuple[ImageShape, ...]  # one for each image
    num_rows: int  # of the language model
    row_length: int  # tokens of a row, image features and padding counted
    num_learned: int  # positions with a label
    num_text_tokens: int  # without image features and padding
    num_encoded: int  # images that SAM encodes; the others' embeddings are cached
    num_absent: int = 0  # classes with a [NEG] that a concept head looks for

    @classmethod
    def of_batch(cls, inputs: ModelInputs, image_token_id: int) -> Work:
        """The shapes of what the model reads, taken before the tensors go to a GPU."""
        ids, valid = inputs.input_ids, inputs.attention_mask.bool()
        labels, owners = inputs.labels, inputs.seg_images
        sizes = zip(inputs.resized_sizes, inputs.original_sizes, strict=True)
        images = tuple(
            ImageShape(
                num_masks=owners.count(index),
                num_tokens=inputs.placeholders[index].num_image_tokens,
                resized_size=resized,
                original_size=original,
            )
            for index, (resized, original) in enumerate(sizes)
        )
        return cls(
            images=images,
            num_rows=ids.shape[0],
            row_length=ids.shape[1],
            num_learned=0 if labels is None else int((labels[:, 1:] != IGNORE_INDEX).sum()),
            num_text_tokens=int((valid & (ids != image_token_id)).sum()),
            num_encoded=0 if inputs.sam_images is None else len(inputs.sam_images),
            num_absent=len(inputs.neg_images),
        )

    @property
    def num_images(self) -> int:
        return len(self.images)

    @property
    def num_masks(self) -> int:
        return sum(image.num_masks for image in self.images)


@dataclass(frozen=True, kw_only=True)
class CostModel:
    """FLOPs of a model in training and in use."""

    shape: LasagnaConfig
    lora_rank: int = 8
    lora_targets: tuple[str, ...] = ("q_proj", "v_proj")
    gradient_checkpointing: bool = True
    on_gpu: bool = True  # where SAM's attention runs folded

    @classmethod
    def of(cls, config: TrainConfig, shape: LasagnaConfig, *, on_gpu: bool = True) -> CostModel:
        """That of a training run."""
        return cls(
            shape=shape,
            lora_rank=config.lora_r,
            lora_targets=tuple(name.strip() for name in config.lora_target_modules.split(",")),
            gradient_checkpointing=config.gradient_checkpointing,
            on_gpu=on_gpu,
        )

    def of_batch(self, inputs: ModelInputs) -> dict[str, float]:
        """The numbers named in COUNTED for one batch, while it is on the CPU."""
        assert self.shape.image_token_id is not None, "the configuration of a model that was built"
        work = Work.of_batch(inputs, self.shape.image_token_id)
        return {
            "images": work.num_images,
            "text_tokens": work.num_text_tokens,
            "model_flops": total(self.training(work).values()).model,
        }

    def training(self, work: Work) -> dict[str, Flops]:
        """FLOPs of each part for one micro-batch: forward, backward, and extra."""
        vlm, sam = self.shape.vlm_config, self.shape.sam_settings
        text = vlm.text_config
        hidden, dim = text.hidden_size, sam.prompt_embed_dim
        # Without a [SEG], projection and decoder still compute one mask, with weight 0.
        num_masks = max(work.num_masks, 1)
        num_absent, num_prompts = 0, num_masks
        if isinstance(sam, ConceptSettings):
            num_absent = work.num_absent
            num_prompts = (num_masks + num_absent) * sam.states_per_class
        head = linear(work.num_learned, hidden, text.vocab_size)
        return {
            "CLIP" if self.shape.is_llava else "vision tower": Flops(
                forward=sum(tower_flops(vlm, image.num_tokens) for image in work.images)
            ),
            "projector": Flops(forward=sum(connector_flops(vlm, image.num_tokens) for image in work.images)),
            "language model": self._layer(work.row_length) * (work.num_rows * text.num_hidden_layers),
            # The logits of a chunk are recomputed in backward.
            "lm_head": learned(head) + Flops(extra=head),
            "SAM encoder": encoder_flops(sam, folded=self.on_gpu) * work.num_encoded,
            "seg_projector": learned(linear(num_prompts, hidden, hidden) + linear(num_prompts, hidden, dim)),
            "mask decoder": mask_head_flops(
                sam, num_masks=num_masks, num_images=work.num_images, num_absent=num_absent
            ),
            "mask resize": total(
                mask_resize_flops(sam, one.resized_size, one.original_size) * one.num_masks
                for one in work.images
            ),
        }

    def prompt(self, num_tokens: int, num_cached: int = 0) -> float:
        """FLOPs of one forward pass of the language model over `num_tokens` tokens after `num_cached` ones."""
        text = self.shape.vlm_config.text_config
        weights = sum(
            linear(num_tokens, *size) + lora(num_tokens, *size, self._rank_of(name))
            for name, size in layer_sizes(text).items()
        )
        pairs = attention(num_tokens, num_cached + num_tokens, query_dim(text))
        return text.num_hidden_layers * (weights + pairs)

    def input_bytes(self, work: Work) -> int:
        """Bytes copied to the device: images, uint8 masks, five int64 numbers for each token of a row."""
        pixels = sum(pixel_bytes(self.shape.vlm_config, image.num_tokens) for image in work.images)
        pixels += sum(3 * height * width for height, width in (one.resized_size for one in work.images))
        masks = sum(one.num_masks * one.original_size[0] * one.original_size[1] for one in work.images)
        return pixels + masks + 5 * 8 * work.num_rows * work.row_length

    def embedding_bytes(self, itemsize: int) -> int:
        """The mask decoder's embedding of one image, as the cache keeps it."""
        return itemsize * sum(math.prod(shape) for shape in self.shape.sam_settings.embedding_shapes)

    def weight_bytes(self, itemsize: int) -> int:
        """The language model's matrices, read once in every pass: its layers and lm_head."""
        text = self.shape.vlm_config.text_config
        layer = sum(a * b for a, b in layer_sizes(text).values())
        return itemsize * (text.num_hidden_layers * layer + text.hidden_size * text.vocab_size)

    def _layer(self, length: int) -> Flops:
        """One layer of the language model on one row.

        The embeddings train, so gradients pass through every layer; only the adapters' weights get gradients.
        """
        text = self.shape.vlm_config.text_config
        forward = attention(length, length, query_dim(text))
        backward = 2 * forward
        for name, size in layer_sizes(text).items():
            frozen, adapter = linear(length, *size), lora(length, *size, self._rank_of(name))
            forward += frozen + adapter
            backward += frozen + 2 * adapter
        # Recomputing stops once everything that backward needs is there; down_proj's result is not needed.
        last = linear(length, *layer_sizes(text)["down_proj"]) if not self._rank_of("down_proj") else 0
        extra = forward - last if self.gradient_checkpointing else 0
        return Flops(forward=forward, backward=backward, extra=extra)

    def _rank_of(self, name: str) -> int:
        return self.lora_rank if name in self.lora_targets else 0
