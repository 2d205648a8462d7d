"""The names of SAM's embeddings: another one for whatever changes them, the same one otherwise."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from model.decoders.sam import SamSegmenter
from model.decoders.transform import ImageTransform
from tests.tiny_weights import SAM, noise_image, random_sam
from utils.data.sam_keys import encoder_key, image_key

TRANSFORM = ImageTransform(64)


@pytest.fixture
def sam() -> SamSegmenter:
    return random_sam()


def test_the_encoder_s_name_changes_with_its_weights_settings_and_number_format(sam):
    before = encoder_key(sam)
    assert encoder_key(sam) == before
    names = {before, encoder_key(sam.bfloat16())}
    sam.float()  # rounded weights
    names.add(encoder_key(sam))
    sam.image_encoder.neck[0].weight.view(-1)[-1] += 1
    names.add(encoder_key(sam))
    sam.settings = replace(SAM, pixel_mean=(1.0, 2.0, 3.0))
    names.add(encoder_key(sam))
    assert len(names) == 5


def test_other_parts_of_sam_do_not_change_the_encoder_s_name(sam):
    before = encoder_key(sam)
    sam.mask_decoder.mask_tokens.weight += 1
    assert encoder_key(sam) == before


def test_an_encoder_that_trains_or_is_divided_is_refused(sam):
    sam.image_encoder.requires_grad_(True)
    with pytest.raises(AssertionError):
        encoder_key(sam)
    sam.requires_grad_(False)
    sam.image_encoder.pos_embed.data = torch.empty(0)
    with pytest.raises(AssertionError):
        encoder_key(sam)


def test_the_image_s_name_changes_with_each_pixel_the_shape_and_how_it_is_resized():
    image = noise_image(20, 30)
    other = image.copy()
    other[-1, -1, -1] ^= 1
    keys = [
        image_key(image, TRANSFORM),
        image_key(other, TRANSFORM),
        image_key(image.reshape(30, 20, 3), TRANSFORM),
        image_key(image, ImageTransform(128)),
        image_key(image, ImageTransform(64, "square")),
        image_key(image, TRANSFORM, fast_resize=True),
    ]
    assert len(set(keys)) == 6
    assert image_key(np.asfortranarray(image), TRANSFORM) == keys[0]
    assert image_key(np.flip(np.flip(image, 1).copy(), 1), TRANSFORM) == keys[0]
