"""--cuda_graphs: the language model and the frozen encoders are recorded once for each shape and launched as a whole.

A micro-batch of the 7B model is thousands of kernels, and launching them one by one takes the host longer than a fast
GPU needs to run them. A CUDA graph is launched in one call. Each shape has a recording of its own, so rows are padded
to a multiple of --pad_to_multiple_of. Dropout reads seed and offset of the random number generator at each launch: it
draws the numbers that it would draw without graphs. Losses and gradients are those of the same kernels launched one
by one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache

from model.backbones.base import ImageFeatures
from model.errors import UserError
from model.lasagna import LasagnaForConditionalGeneration
from model.text.placeholder import Placeholder
from utils.training.recordings import (
    CudaRecorder,
    RecordedPass,
    Recorder,
    Recordings,
    Replay,
)

CLIP_IMAGES = "clip_images"  # what a LLaVA's encoder reads


def check_cuda_graphs() -> None:
    """Check that there is a GPU that can record.

    Raises:
        UserError: there is none.
    """
    if not torch.cuda.is_available():
        raise UserError("--cuda_graphs needs a CUDA GPU, and none is here; leave it out")


def record_parts(
    model: LasagnaForConditionalGeneration, new_recorder: Callable[[], Recorder] | None = None
) -> list[str]:
    """Has a model record, in training, what it runs; returns the names of the parts.

    These are the language model, in passes whose attention mask is a tensor; SAM's image encoder; CLIP and the
    projector of a LLaVA, unless the projector trains. The encoders of other models run without.

    Args:
        new_recorder: called for each part; None: CUDA graphs on the model's device.
    """
    new_recorder = new_recorder or (lambda: CudaRecorder(model.device))
    parts = ["language model"]
    override(model, "language_states", RecordedStates(model, new_recorder()))
    if model.config.sam_settings.kind == "sam":
        override(
            model.sam.frozen_encoder, "forward", RecordedEncoder(model.sam.frozen_encoder, new_recorder())
        )
        parts.append("SAM's encoder")
    if model.config.is_llava:
        projector = model.base_vlm.model.multi_modal_projector
        if not any(weight.requires_grad for weight in projector.parameters()):
            override(model, "image_features", RecordedFeatures(model, new_recorder()))
            parts.append("CLIP")
    return parts


def forget_recordings(model: LasagnaForConditionalGeneration) -> None:
    """Has a model run its parts without recordings again."""
    for owner, name in (
        (model, "language_states"),
        (model.sam.frozen_encoder, "forward"),
        (model, "image_features"),
    ):
        owner.__dict__.pop(name, None)


def override(owner: nn.Module, name: str, function: Callable[..., Any]) -> None:
    """Replaces a method of one object, as torch.cuda.make_graphed_callables replaces `forward`."""
    assert name not in owner.__dict__, f"{name} is recorded already"
    owner.__dict__[name] = function


class RecordedEncoder:
    """The `forward` of a frozen image encoder (n, 3, side, side) -> features."""

    def __init__(self, encoder: nn.Module, recorder: Recorder) -> None:
        self._encoder, self._eager = encoder, encoder.forward
        self._recordings = Recordings(encoder, recorder)

    def __call__(self, images: Tensor) -> Tensor:
        """See `forward` of the encoder."""
        if not self._encoder.training:
            return self._eager(images)
        return self._recordings.call(self._eager, images)


class RecordedFeatures:
    """`image_features` of a LLaVA."""

    def __init__(self, model: LasagnaForConditionalGeneration, recorder: Recorder) -> None:
        self._model, self._eager = model, model.image_features
        llava = model.base_vlm.model
        used = nn.ModuleList([llava.vision_tower, llava.multi_modal_projector])
        self._recordings = Recordings(used, recorder)

    def __call__(
        self, vlm_images: Mapping[str, Tensor], placeholders: Sequence[Placeholder] = ()
    ) -> ImageFeatures:
        """See `BackboneMixin.image_features`."""
        if not self._model.training:
            return self._eager(vlm_images, placeholders)
        features = self._recordings.call(self._features, vlm_images[CLIP_IMAGES])
        return ImageFeatures(tokens=features.unbind(0))

    def _features(self, images: Tensor) -> Tensor:
        return torch.stack(self._eager({CLIP_IMAGES: images}).tokens)


class RecordedStates:
    """`language_states`, forward and backward."""

    def __init__(self, model: LasagnaForConditionalGeneration, recorder: Recorder) -> None:
        self._model, self._eager = model, model.language_states
        language = model.backbone.language_model
        words = model.get_input_embeddings()
        self._places = [
            (module, name)
            for module in language.modules()
            for name, weight in module.named_parameters(recurse=False)
            if weight.requires_grad and module is not words
        ]
        self._weights = [module.get_parameter(name) for module, name in self._places]
        self._recordings = Recordings(language, recorder)

    def __call__(
        self,
        embeddings: Tensor,
        attention_mask: Any,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        deep: Mapping[str, Any] | None = None,
    ) -> Tensor:
        """See `BackboneMixin.language_states`."""
        inputs = [embeddings, attention_mask, position_ids]
        is_plain = cache is None and not deep and isinstance(attention_mask, Tensor)
        found = None
        if is_plain and self._model.training and torch.is_grad_enabled() and embeddings.requires_grad:
            found = self._recordings.find(
                inputs,
                lambda recorder: RecordedPass(self._eager, embeddings, inputs[1:], self._places, recorder),
            )
        if found is None:
            return self._eager(embeddings, attention_mask, position_ids, cache, deep)
        return Replay.apply(self._recordings, found, len(inputs), *inputs, *self._weights)
