"""Predicted time of a training step: arithmetic and communication for a given number of GPUs.

`python -m utils.costs.flops` prints it for a configuration.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from model.choices import BF16
from model.decoders.transform import ImageTransform
from utils.common.distributed import dtype_of
from utils.config.training import TrainConfig
from utils.costs.assumptions import (
    ANSWER_TOKENS,
    ANSWER_TOKENS_PER_CLASS,
    GPUS_PER_NODE,
    NETWORK,
    NVLINK,
    PREFIX_TOKENS,
    QUERY_TOKENS_PER_CLASS,
    QUESTION_TOKENS,
)
from utils.costs.cost_model import ImageShape, Work
from utils.costs.memory import Count
from utils.costs.vision_flops import IMAGE_SIZE


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The samples and the hardware of a prediction."""

    images: int  # per micro-batch
    conversations: int  # per image
    classes: int  # per conversation; 0: a referring or reasoning question
    masks: int  # [SEG] tokens per image
    gpus: int
    tflops: float  # sustained, per GPU
    bandwidth: float | None  # GB/s per GPU; None: NVLINK or NETWORK
    disk_bytes: int  # per sample

    def work(self, num_features: int, transform: ImageTransform) -> Work:
        """The work of a micro-batch of packed rows, each with `num_features` patch features.

        `transform` makes the mask decoder's input of an image.
        """
        learned = self.classes * ANSWER_TOKENS_PER_CLASS or ANSWER_TOKENS
        own = QUESTION_TOKENS + self.classes * QUERY_TOKENS_PER_CLASS + learned
        num_text = PREFIX_TOKENS + self.conversations * own
        resized = transform.size(*IMAGE_SIZE)
        image = ImageShape(
            num_masks=self.masks, num_tokens=num_features, resized_size=resized, original_size=IMAGE_SIZE
        )
        return Work(
            images=(image,) * self.images,
            num_rows=self.images,
            row_length=num_features + num_text,
            num_learned=self.images * self.conversations * learned,
            num_text_tokens=self.images * num_text,
            num_encoded=self.images,
            # As in training, of the classes that are not there as many as have a mask.
            num_absent=self.images * min(self.masks, max(0, self.conversations * self.classes - self.masks)),
        )


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """One optimizer step on one GPU."""

    stage: int
    gpus: int
    images: int  # per step, all GPUs together
    compute: float  # seconds
    communication: float  # seconds, without overlap
    sent: float  # bytes

    @property
    def fastest(self) -> float:
        """Seconds if communication and arithmetic overlap fully."""
        return max(self.compute, self.communication)

    @property
    def slowest(self) -> float:
        """Seconds without any overlap."""
        return self.compute + self.communication


def encoder_parameters(model: Any) -> int:
    """Number of parameters used in forward only: vision tower, its projector and SAM's image encoder."""
    parts = (model.backbone.language_model, model.backbone.lm_head)
    later = {id(parameter) for part in parts for parameter in part.parameters()}  # a tied head counts once
    vision = [parameter for parameter in model.base_vlm.parameters() if id(parameter) not in later]
    num_vision = sum(parameter.numel() for parameter in vision)
    return num_vision + sum(tensor.numel() for tensor in model.sam.encoder_tensors().values())


def bytes_sent(
    count: Count, encoders: int, stage: int, num_gpus: int, width: int, micro_batches: int
) -> float:
    """Bytes that each GPU sends (and receives) in one optimizer step.

    With G GPUs, a ring all-gather or reduce-scatter of n bytes sends (G - 1) / G n. Gradients of trainable weights
    are reduced after each micro-batch, up to stage 1 once a step, and the updated weights gathered after the step.
    Stage 3 also gathers all weights, frozen ones included, in forward and, except for the encoders, in backward:
    Rajbhandari et al., "ZeRO", 2020, section 7. `width` is that of all weights but those of `count.cast`.
    """
    ring = (num_gpus - 1) / num_gpus
    gradients = width * count.trainable * (micro_batches if stage > 1 else 1)
    if stage < 3:
        return ring * (gradients + width * count.trainable)
    in_forward = width * (count.total - count.cast) + dtype_of(BF16).itemsize * count.cast
    in_backward = width * (count.total - encoders)
    return ring * (gradients + micro_batches * (in_forward + in_backward))


def predict(
    flops: float,
    count: Count,
    encoders: int,
    stage: int,
    gpus: int,
    setting: Setting,
    config: TrainConfig,
) -> Prediction:
    """The prediction for an optimizer step with `flops` on each of `gpus` GPUs."""
    micro_batches = config.grad_accumulation_steps
    sent = bytes_sent(count, encoders, stage, gpus, dtype_of(config.precision).itemsize, micro_batches)
    bandwidth = setting.bandwidth or (NVLINK if gpus <= GPUS_PER_NODE else NETWORK)
    return Prediction(
        stage=stage,
        gpus=gpus,
        images=setting.images * micro_batches * gpus,
        compute=flops / (setting.tflops * 1e12),
        communication=sent / (bandwidth * 1e9),
        sent=sent,
    )
