"""The tower's patches against those of Hugging Face's LLaVA, which runs all layers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from model.backbones.clip import clip_patches, states_after
from tests.tiny_weights import noise_image

IMAGES = [noise_image(40, 60, seed=1), noise_image(50, 30, seed=2)]


def images(model):
    return torch.from_numpy(np.stack([model.processor.images.clip_image(image) for image in IMAGES]))


@pytest.mark.parametrize("strategy", ["default", "full"])
@pytest.mark.parametrize("layers", [-2, -1, 0, [-2, 0]])
def test_patches_equal_those_of_a_tower_that_runs_to_the_end(tiny_model, layers, strategy):
    tower, config = tiny_model.base_vlm.model.vision_tower, tiny_model.config
    config.vlm_config.vision_feature_layer = layers
    config.vlm_config.vision_feature_select_strategy = strategy
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (config.clip_mean, config.clip_std))
    clip_images = images(tiny_model)
    with torch.no_grad():
        states = tower((clip_images / 255 - mean) / std, output_hidden_states=True).hidden_states
    chosen = [states[layer] for layer in np.atleast_1d(layers)]
    expected = torch.cat([state[:, 1:] if strategy == "default" else state for state in chosen], dim=-1)
    assert torch.equal(clip_patches(tower, clip_images, config), expected)


def test_layers_behind_the_one_that_is_read_do_not_run(tiny_model):
    tower = tiny_model.base_vlm.model.vision_tower
    ran = []
    for index, layer in enumerate(tower.encoder.layers):
        layer.register_forward_hook(lambda *_, index=index: ran.append(index))
    side = tower.config.image_size
    states_after(tower, torch.zeros(1, 3, side, side), [-2])
    assert ran == list(range(len(tower.encoder.layers) - 1))
