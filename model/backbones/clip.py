"""CLIP patch features for LLaVA; layers after the last one that it reads are not run."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import torch
from torch import Tensor
from transformers import CLIPVisionModel

from model.config import LasagnaConfig


@torch.no_grad()
def clip_patches(tower: CLIPVisionModel, clip_images: Tensor, config: LasagnaConfig) -> Tensor:
    """(B, 3, S, S) uint8 -> (B, num_patches, clip_dim). The tower is frozen: no gradient.

    If LLaVA reads several layers, they are concatenated.
    """
    # Filled on the device: a copy would synchronize it with the host, and no CUDA graph can record it.
    mean, std = (
        torch.stack([torch.full((1, 1), value, device=clip_images.device) for value in values])
        for values in (config.clip_mean, config.clip_std)
    )
    pixels = (clip_images.float() / 255 - mean) / std
    layers = config.vlm_config.vision_feature_layer
    chosen = states_after(tower, pixels, [layers] if isinstance(layers, int) else layers)
    if config.vlm_config.vision_feature_select_strategy == "default":  # patches without the class token
        chosen = [state[:, 1:] for state in chosen]
    return torch.cat(chosen, dim=-1)


def states_after(tower: CLIPVisionModel, pixels: Tensor, layers: Sequence[int]) -> list[Tensor]:
    """States (B, 1 + num_patches, clip_dim) after each of `layers`; later layers are not run.

    Args:
        tower: a CLIP vision tower.
        pixels: (B, 3, S, S) normalised.
        layers: indices of Hugging Face's `hidden_states`: 0 is the first layer's input, -1 the last one's output.
    """
    stack = tower.encoder.layers
    wanted = [range(len(stack) + 1)[layer] for layer in layers]
    states = [tower.pre_layrnorm(tower.embeddings(pixels.to(tower.pre_layrnorm.weight.dtype)))]
    for layer in islice(stack, max(wanted)):
        states.append(layer(states[-1], None))
    return [states[layer] for layer in wanted]
