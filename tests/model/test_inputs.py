"""ModelInputs and the model's forward pass agree, and a batch moves as a whole."""

from __future__ import annotations

import inspect
from dataclasses import fields

import numpy as np
import torch

from model.inputs import ImageInputs, ModelInputs
from model.lasagna import LasagnaForConditionalGeneration
from model.text.conversation import Conversation
from model.text.special_tokens import SEG, Special
from tests.tiny_weights import noise_image

ROW = Conversation.of("Where is the dog?", ("It is ", Special(SEG), "."))


def test_the_fields_are_the_arguments_of_the_model():
    """A field that forward does not take, or the other way round, would be found on the first batch only."""
    for inputs, method in ((ModelInputs, "forward"), (ImageInputs, "encode_images")):
        taken = inspect.signature(getattr(LasagnaForConditionalGeneration, method)).parameters
        needed = {name for name, each in taken.items() if each.default is inspect.Parameter.empty}
        names = {field.name for field in fields(inputs)}
        assert names == set(taken) - {"self", "return_predictions"}
        assert needed - {"self"} <= names


def test_every_tensor_moves_and_nothing_else_changes(tiny_model):
    masks = [np.ones((1, 40, 60), dtype=np.uint8)]
    inputs = tiny_model.processor.collate([noise_image()], [ROW], [0], masks=masks, pack_rows=True)
    moved = inputs.to("meta")
    assert type(moved) is ModelInputs
    for name, value in inputs.fields().items():
        there = getattr(moved, name)
        if isinstance(value, torch.Tensor):
            assert (there.device.type, there.shape, there.dtype) == ("meta", value.shape, value.dtype), name
        elif name == "vlm_images":
            assert [value.device.type for value in there.values()] == ["meta"]
        elif name == "grid_places":
            assert [(place.device.type, len(place)) for place in there] == [("meta", len(value[0]))]
        elif name != "gt_masks":
            assert there == value, name
    assert [(mask.device.type, mask.shape) for mask in moved.gt_masks] == [("meta", (1, 40, 60))]
    assert inputs.input_ids.device.type == "cpu"
    assert inputs.num_images == 1


def test_without_masks_nothing_is_learned(tiny_model):
    inputs = tiny_model.processor.collate([noise_image()], [ROW], [0])
    assert (inputs.labels, inputs.gt_masks, inputs.learned_rows, inputs.learned_columns) == (None,) * 4
