"""The spatial prompt alone: similarities, gates, losses. In the model: tests/model/test_spatial_model.py."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from model.spatial_prompt import SpatialPrompt, map_losses
from model.token_grid import Placement, TokenGrid, average_over_cells


@pytest.fixture
def spatial():
    module = SpatialPrompt(8, 4, dim=2, num_latent_prompts=3)
    module.initialize(torch.Generator().manual_seed(0))
    return module


def states(*numbers: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(number, 8, generator=generator) for number in numbers]


def test_a_map_is_the_scaled_similarity_of_the_deciding_state_with_each_token_of_its_image(spatial):
    deciding, tokens = states(2, 0, 1), states(4, 6)
    found = spatial(deciding, tokens, [(2, 2), (2, 3)], [1, 0, 0])
    assert [tuple(maps.shape) for maps in found.maps] == [(2, 2, 3), (0, 2, 2), (1, 2, 2)]
    expected = spatial.query(deciding[0][1]) @ spatial.key(tokens[1][5]) / math.sqrt(2)
    torch.testing.assert_close(found.maps[0][1, 1, 2], expected)


def test_gates_are_closed_in_the_beginning_and_learn(spatial):
    found = spatial(states(2), states(6), [(2, 3)], [0])
    assert found.gates.tolist() == [0, 0]
    found.gates.sum().backward()
    assert spatial.gate.weight.grad.abs().sum() > 0


def test_latent_prompts_are_tokens_of_the_prompt(spatial):
    assert spatial(states(5), states(6), [(2, 3)], [0]).latent.shape == (5, 3, 4)
    assert SpatialPrompt(8, 4)(states(5), states(6), [(2, 3)], [0]).latent.shape == (5, 0, 4)


def test_the_losses_of_a_map_are_those_of_the_fraction_of_each_cell():
    grid = TokenGrid(size=(1, 2), region=(0, 0, 2, 4))
    average = average_over_cells(grid, (2, 4), torch.device("cpu"))
    mask = torch.tensor([[[1, 1, 1, 0], [1, 1, 0, 0]]], dtype=torch.uint8)  # cells: 1 and 1/4
    logits = torch.tensor([[[0.3, -0.7]]])
    bce, dice = map_losses([logits], [average], [mask])
    target, p = torch.tensor([1.0, 0.25]), logits.sigmoid().flatten()
    torch.testing.assert_close(bce, F.binary_cross_entropy(p, target)[None])
    torch.testing.assert_close(dice, 1 - 2 * (p * target).sum()[None] / (p.sum() + 1.25))


def test_images_without_masks_have_no_terms():
    nothing = Placement(rows=torch.ones(1, 2), columns=torch.ones(1, 2))
    bce, dice = map_losses([torch.zeros(0, 1, 1)], [nothing], [torch.zeros(0, 2, 2)])
    assert len(bce) == len(dice) == 0
