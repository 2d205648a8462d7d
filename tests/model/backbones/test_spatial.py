"""The spatial prompt with every family of bases: training and inference decode the same masks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from model.errors import UserError
from model.text.conversation import Conversation
from tests.tiny_weights import noise_image

IMAGES = [noise_image(40, 60, seed=1), noise_image(90, 30, seed=2)]
CLASSES = ["dog", "cat"]


def test_answers_and_training_passes_decode_the_same_masks(model):
    if not model.backbone.can_crop:
        with pytest.raises(UserError, match=r"--spatial_prompt does not go with a \w+, .* leave it out"):
            model.add_spatial_prompt()
        return
    model.add_spatial_prompt(1)
    with torch.no_grad():
        model.spatial_prompt.gate.bias.fill_(1.0)
        model.spatial_prompt.key.weight.mul_(10)
    answers = model.segment_batch(IMAGES, [CLASSES] * 2, presence_threshold=0.0)
    format = model.processor.format
    row = Conversation.of(format.query(CLASSES), format.answer([(name, True) for name in CLASSES]))
    for pack_rows in (False, True):
        inputs = model.processor.collate(IMAGES, [row, row], [0, 1], pack_rows=pack_rows)
        with torch.no_grad():
            output = model(**inputs.fields())
        for answer, masks in zip(answers, output.masks, strict=True):
            torch.testing.assert_close(answer.masks, masks, rtol=2e-3, atol=1e-5)
    for grid, image in zip(inputs.token_grids, IMAGES, strict=True):
        rows, columns = grid.size
        assert rows * columns == (len(grid.tokens) if grid.tokens else rows * columns)
        if model.config.vlm_config.model_type.startswith("qwen"):
            # The cells keep the aspect ratio of the image.
            assert (rows > columns) == (image.shape[0] > image.shape[1])


def test_the_grid_of_tokens_shows_the_whole_image(model):
    """A white half of the image changes the features of its half of the grid most."""
    image = np.zeros((64, 64, 3), np.uint8)
    halves = [image.copy(), image.copy()]
    halves[0][:, :32] = 255
    halves[1][:, 32:] = 255
    inputs = model.processor.image_inputs([image, *halves]).to("cpu")
    with torch.no_grad():
        features = model.image_features(inputs.vlm_images, inputs.placeholders)
    grid = inputs.token_grids[0]
    assert grid.region == (0, 0, 64, 64)
    places = grid.pick(list(range(len(features.tokens[0]))))
    black, left, right = (tokens[places].unflatten(0, grid.size) for tokens in features.tokens)
    if grid.size[1] > 1:
        column = grid.size[1] // 2
        change = [(tokens - black).norm(dim=-1).sum(0) for tokens in (left, right)]
        assert change[0][:column].sum() > change[0][grid.size[1] - column :].sum()
        assert change[1][:column].sum() < change[1][grid.size[1] - column :].sum()
