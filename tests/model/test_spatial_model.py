"""The spatial prompt in the whole model: training, inference, merging, and what it changes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from model.checkpoints.load import load_model
from model.errors import UserError
from model.lora import add_lora, mark_trainable
from model.text.conversation import Conversation
from model.text.special_tokens import SEG, Special
from tests.tiny_weights import noise_image

IMAGES = [noise_image(40, 60, seed=1), noise_image(50, 30, seed=2)]
CLASSES = ["dog", "cat", "sky"]


def referring(words):
    return Conversation.of(f"Where is the {words}?", ("It is ", Special(SEG), "."))


ROWS = [referring("dog"), referring("tree"), Conversation.of("What is it?", "A house."), referring("cat")]
OWNERS = [1, 0, 0, 1]
MASKS = [np.ones((1, 40, 60), np.uint8), np.eye(50, 30, dtype=np.uint8)[None].repeat(2, 0)]


@pytest.fixture
def spatial_model(tiny_model):
    """A tiny model with a spatial prompt whose gates are open."""
    tiny_model.add_spatial_prompt(2)
    with torch.no_grad():
        tiny_model.spatial_prompt.gate.bias.fill_(1.0)
        # The tiny states are nearly the same for all tokens: without the mean of the keys the maps would be flat.
        tiny_model.spatial_prompt.key.weight.mul_(30)
    return tiny_model


def batch_of(model, **packing):
    return model.processor.collate(IMAGES, ROWS, OWNERS, masks=MASKS, **packing)


def test_with_closed_gates_masks_are_those_without(tiny_model):
    fields = tiny_model.processor.collate(IMAGES, ROWS, OWNERS).fields()
    with torch.no_grad():
        expected = tiny_model(**fields).masks
        tiny_model.add_spatial_prompt()
        found = tiny_model(**fields).masks
        tiny_model.spatial_prompt.gate.bias.fill_(1.0)
        other = tiny_model(**fields).masks
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert (other[0] - expected[0]).abs().max() > 1e-4


def test_packed_rows_give_what_single_rows_give(spatial_model):
    single = spatial_model(**batch_of(spatial_model).fields(), return_predictions=True)
    packed = spatial_model(**batch_of(spatial_model, pack_rows=True).fields(), return_predictions=True)
    torch.testing.assert_close(packed.losses.values(), single.losses.values(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(packed.masks, single.masks, rtol=1e-4, atol=1e-5)


def test_losses_have_the_terms_of_the_maps_and_add_up(spatial_model):
    losses = spatial_model(**batch_of(spatial_model).fields()).losses.values()
    assert set(losses) == {"total", "cross_entropy", "mask_bce", "dice", "map_bce", "map_dice"}
    torch.testing.assert_close(losses.pop("total"), sum(losses.values()))
    assert losses["map_bce"] > 0


@pytest.mark.parametrize(
    "rows", [ROWS, [Conversation.of("What is it?", "A house.")] * 2], ids=["seg", "none"]
)
def test_every_trained_weight_gets_a_gradient(spatial_model, rows):
    spatial_model.vlm = add_lora(spatial_model.vlm)
    names = mark_trainable(spatial_model)
    for part in ("spatial_prompt.query", "spatial_prompt.gate", "sam.prompt_encoder.mask_downscaling"):
        assert any(name.startswith(part) for name in names), part
    owners, masks = (OWNERS, MASKS) if rows is ROWS else ([0, 1], [mask[:0] for mask in MASKS])
    spatial_model(
        **spatial_model.processor.collate(IMAGES, rows, owners, masks=masks).fields()
    ).loss.backward()
    assert [n for n, p in spatial_model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_inference_decodes_the_masks_of_the_training_pass(spatial_model):
    """Constrained answers, then the same text in one pass without a cache."""
    [answer] = spatial_model.segment_batch([IMAGES[0]], [CLASSES], presence_threshold=0.0)
    assert all(answer.present)
    text = spatial_model.processor.format.answer([(name, True) for name in CLASSES])
    row = Conversation.of(spatial_model.processor.format.query(CLASSES), text)
    with torch.no_grad():
        [masks] = spatial_model(**spatial_model.processor.collate([IMAGES[0]], [row], [0]).fields()).masks
    torch.testing.assert_close(answer.masks, masks, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("classes_per_query", [3, 2])
def test_images_of_a_batch_and_encoded_images_give_what_they_give_alone(spatial_model, classes_per_query):
    """With two classes in a query, prompts share an image."""
    how = {"presence_threshold": 0.0, "classes_per_query": classes_per_query}
    alone = [spatial_model.segment(image, CLASSES, **how).masks for image in IMAGES]
    together = spatial_model.segment_batch(spatial_model.encode_batch(IMAGES), [CLASSES] * 2, **how)
    for mine, single in zip(together, alone, strict=True):
        torch.testing.assert_close(mine.masks, single, rtol=1e-3, atol=1e-5)


def test_another_threshold_decodes_masks_with_their_maps_again(spatial_model):
    image = spatial_model.encode(IMAGES[0])
    first = spatial_model.segment(image, CLASSES, presence_threshold=0.0)
    again = spatial_model.rethreshold(spatial_model.rethreshold(first, image, 1.0), image, 0.0)
    torch.testing.assert_close(again.masks, first.masks, rtol=1e-4, atol=1e-6)


def test_a_saved_model_has_its_spatial_prompt(spatial_model, tmp_path):
    spatial_model.save_pretrained(tmp_path)
    loaded, _ = load_model(tmp_path)
    assert loaded.config.spatial_prompt
    assert loaded.config.num_latent_prompts == 2
    torch.testing.assert_close(loaded.spatial_prompt.state_dict(), spatial_model.spatial_prompt.state_dict())
    expected = spatial_model.segment(IMAGES[0], CLASSES, presence_threshold=0.0).masks
    torch.testing.assert_close(loaded.segment(IMAGES[0], CLASSES, presence_threshold=0.0).masks, expected)


def test_another_number_of_latent_prompts_is_refused(spatial_model):
    spatial_model.add_spatial_prompt(2)  # the same: nothing to do
    with pytest.raises(UserError, match="trained with --num_latent_prompts 2, not 3; pass 2"):
        spatial_model.add_spatial_prompt(3)


@pytest.mark.parametrize(("value", "aspect"), [("square", 0.5), ("pad", 2.0), ("stretch", 1.0)])
def test_the_region_of_the_token_grid_is_what_clip_sees(tiny_model, value, aspect):
    """A white stripe at the left border of a wide image: cut away, narrow at its place, or at the border."""
    tiny_model.set_image_aspect_ratio(value)
    assert tiny_model.config.image_aspect_ratio == value
    image = np.zeros((40, 80, 3), np.uint8)
    image[:, :10] = 255
    prepared = tiny_model.processor.images.prepare(image)
    top, left, bottom, right = prepared.grid.region
    assert (bottom - top) * (right - left) == pytest.approx(40 * 80 * aspect)
    pixels = prepared.pixels["clip_images"][0].numpy()
    side = pixels.shape[0]
    # Where the pixel (20, 5) of the image lies in CLIP's: outside of the crop, else white.
    row, column = (20.5 - top) / (bottom - top) * side, (5 - left) / (right - left) * side
    if value == "square":
        assert column < 0
        assert pixels.max() == 0
    else:
        assert pixels[int(row), int(column)] == 255
        # 20 pixels further it is black.
        assert pixels[int(row), int((25 - left) / (right - left) * side)] == 0
