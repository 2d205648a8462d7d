"""What autograd keeps of a training step until backward, measured on the model's own layers without memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from model.decoders.concept import CONCEPTS_PER_CALL, ConceptSegmenter
from model.decoders.transform import ImageTransform
from model.lasagna import LasagnaForConditionalGeneration
from model.losses import LOGITS_PER_CHUNK, PIXELS_PER_CHUNK, mask_losses
from utils.common.distributed import dtype_of
from utils.config.training import TrainConfig
from utils.costs.vision_flops import IMAGE_SIZE, num_image_tokens

# One for all estimates: SAM 3's detector keeps a tensor of its last call.
FAKE = FakeTensorMode()


def activation_bytes(model: LasagnaForConditionalGeneration, config: TrainConfig, num_masks: int) -> int:
    """What autograd keeps of one micro-batch until backward; measured on the model's own layers.

    Each image has one row with its features and --model_max_length tokens, and `num_masks` masks. With gradient
    checkpointing every layer of the language model keeps its input, and one layer at a time keeps all it needs.
    The encoders run without gradients; their temporary memory is free again before the language model starts.
    """
    text = model.config.vlm_config.text_config
    num_image = num_image_tokens(model.config.vlm_config, config)
    num_tokens = config.batch_size * (num_image + config.model_max_length)
    state = num_tokens * text.hidden_size * dtype_of(config.precision).itemsize
    layer = layer_bytes(model, num_tokens)
    layers = text.num_hidden_layers * (state if config.gradient_checkpointing else layer)
    if config.gradient_checkpointing:
        layers += layer
    # Of one piece of the text loss: logits in the model's dtype and their gradient; in float32 logits,
    # log-probabilities and gradient. Of one piece of the mask losses: logits, targets and two temporary arrays.
    num_logits = min(num_tokens * text.vocab_size, LOGITS_PER_CHUNK)
    logits = num_logits * (2 * dtype_of(config.precision).itemsize + 3 * 4)
    pixels = max(PIXELS_PER_CHUNK, math.prod(IMAGE_SIZE)) * 4 * 4
    num_masks *= config.batch_size
    return (
        layers + max(logits, pixels) + num_masks * mask_bytes(model) + concept_bytes(model, config, num_masks)
    )


def layer_bytes(model: LasagnaForConditionalGeneration, num_tokens: int) -> int:
    """What one layer of the language model keeps for `num_tokens` tokens, its input not counted."""
    text = model.config.vlm_config.text_config
    layers = model.backbone.language_model.layers
    layer = next(layer for layer in layers if hasattr(layer, "self_attn"))  # Qwen3.5 has recurrent ones too
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    with FAKE:
        dtype = give_values(layer)
        states = torch.empty(1, num_tokens, text.hidden_size, dtype=dtype, requires_grad=True)
        angles = torch.empty(1, num_tokens, head_dim, dtype=dtype)
        kept = saved_bytes(layer, lambda: layer(states, position_embeddings=(angles, angles)))
        return kept - states.nbytes


def mask_bytes(model: LasagnaForConditionalGeneration) -> int:
    """What one [SEG] keeps: projection, mask decoder, gradients of the losses for an image of 480 x 640."""
    settings = model.config.sam_settings
    resized = ImageTransform(settings.image_size, settings.resize).size(*IMAGE_SIZE)
    parts = nn.ModuleList((model.seg_projector, model.sam))
    with FAKE:
        dtype = give_values(parts)
        state = torch.empty(1, model.sam.states_per_prompt, model.seg_projector[0].in_features, dtype=dtype)
        levels = tuple(torch.empty(1, *shape, dtype=dtype) for shape in settings.embedding_shapes)

        def draw() -> Tensor:
            low_res = model.sam.decode(model.seg_projector(state), levels, [0])
            resize = model.sam.mask_resize(resized, IMAGE_SIZE, low_res.device)
            target = torch.zeros(1, *IMAGE_SIZE, dtype=torch.uint8)
            return mask_losses([low_res], [resize], [target])[0].sum()

        return saved_bytes(parts, draw) - sum(level.nbytes for level in levels)


def concept_bytes(model: LasagnaForConditionalGeneration, config: TrainConfig, num_masks: int) -> int:
    """What a concept head takes besides: the neck's levels of every image, the classes recomputed at a time."""
    sam = model.sam
    if not isinstance(sam, ConceptSegmenter):
        return 0
    sam.recomputes = False
    try:
        of_class = mask_bytes(model)  # with the levels of one image
    finally:
        sam.recomputes = True
    dim, side, width = (
        sam.settings.prompt_embed_dim,
        sam.settings.grid_size[0],
        dtype_of(config.precision).itemsize,
    )
    levels = width * dim * side**2 * (16 + 4 + 1)
    return config.batch_size * levels + min(num_masks, CONCEPTS_PER_CALL) * of_class


def give_values(module: nn.Module) -> torch.dtype:
    """Turn meta tensors into fake CPU tensors, which take the CPU's code paths, such as fused attention."""
    for part in module.modules():
        for name, weight in part._parameters.items():
            if weight is not None:
                fake = torch.empty(weight.shape, dtype=weight.dtype)
                part._parameters[name] = nn.Parameter(fake, requires_grad=weight.requires_grad)
        for name, value in part._buffers.items():
            if value is not None:
                part._buffers[name] = torch.empty(value.shape, dtype=value.dtype)
    return next(module.parameters()).dtype


def saved_bytes(module: nn.Module, run: Callable[[], Any]) -> int:
    """Bytes of what `run` keeps for backward, each storage once, the module's own weights not counted."""
    own = {parameter.untyped_storage()._cdata for parameter in module.parameters()}
    kept: dict[int, Tensor] = {}  # the tensors too, so that no storage is freed and its address used again

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage()._cdata not in own:
            kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = run()
    del result
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
