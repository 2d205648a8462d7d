"""The concept head against the library's Sam3Model, fed with the same text embeddings."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.sam3.image_processing_sam3 import Sam3ImageProcessor
from transformers.models.sam3.modeling_sam3 import Sam3VisionEncoderOutput

from model.decoders import concept
from model.decoders.concept import MAX_INSTANCES, best
from model.decoders.concept_settings import ConceptSettings
from model.errors import UserError
from tests.tiny_weights import CONCEPT, concept_of, noise_image, random_sam3

SIDE, DIM = CONCEPT.image_size, CONCEPT.prompt_embed_dim
OWNERS = [1, 0, 1]


@pytest.fixture(scope="module")
def pair():
    """The library's model, our decoder with its weights, and the levels of two images."""
    library = random_sam3()
    return library, concept_of(library)


def images():
    return torch.from_numpy(np.stack([noise_image(SIDE, SIDE, seed) for seed in (1, 2)])).permute(0, 3, 1, 2)


def prompts():
    """Three names of five, two and one token, of at most five."""
    torch.manual_seed(3)
    found = torch.randn(3, 5, DIM)
    found[1, :3], found[2, :4] = 0, 0
    return found


def by_the_library(library, text, valid):
    pixels = (images().float() / 255 - 0.5) / 0.5
    vision = library.get_vision_features(pixels)
    rows = Sam3VisionEncoderOutput(
        fpn_hidden_states=tuple(level[OWNERS] for level in vision.fpn_hidden_states),
        fpn_position_encoding=tuple(level[OWNERS] for level in vision.fpn_position_encoding),
    )
    return library(
        vision_embeds=rows, text_embeds=BaseModelOutputWithPooling(pooler_output=text), attention_mask=valid
    )


@torch.no_grad()
def test_masks_presence_and_instances_are_the_library_s(pair, monkeypatch):
    library, ours = pair
    text = prompts()
    expected = by_the_library(library, text, text.ne(0).any(-1))
    levels = ours.encode(images(), [(SIDE, SIDE)] * 2)
    assert tuple(level.shape[1:] for level in levels) == CONCEPT.embedding_shapes
    for per_call in (concept.CONCEPTS_PER_CALL, 2):
        monkeypatch.setattr(concept, "CONCEPTS_PER_CALL", per_call)
        found = ours.decode_all(text, levels, OWNERS, min_score=0.0)
        same = {"rtol": 1e-4, "atol": 1e-4}
        torch.testing.assert_close(found.low_res, expected.semantic_seg[:, 0], **same)
        torch.testing.assert_close(found.presence, expected.presence_logits[:, 0], **same)
        torch.testing.assert_close(ours.presence(text, levels, OWNERS), found.presence, **same)
    scores = expected.pred_logits.sigmoid() * expected.presence_logits.sigmoid()
    for row, one in enumerate(found.candidates):
        order = scores[row].argsort(descending=True)
        torch.testing.assert_close(one.scores, scores[row][order], **same)
        torch.testing.assert_close(one.masks, expected.pred_masks[row][order], **same)


@torch.no_grad()
def test_instances_at_the_image_s_size_are_those_of_the_library_s_image_processor(pair):
    library, ours = pair
    text = prompts()
    expected = by_the_library(library, text, text.ne(0).any(-1))
    threshold, sizes = 0.05, [(40, 60)] * 3
    theirs = Sam3ImageProcessor().post_process_instance_segmentation(expected, threshold, target_sizes=sizes)
    found = ours.decode_all(text, ours.encode(images(), [(SIDE, SIDE)] * 2), OWNERS, min_score=threshold)
    assert sum(len(one["scores"]) for one in theirs) > 3
    for one, other in zip(found.candidates, theirs, strict=True):
        order = other["scores"].argsort(descending=True)
        torch.testing.assert_close(one.scores, other["scores"][order])
        drawn = ours.resize_masks(one.masks.sigmoid(), (SIDE, SIDE), sizes[0]) > 0.5
        assert (drawn != other["masks"][order].bool()).float().mean() < 1e-3


def test_no_prompt_gives_no_mask(pair):
    _, ours = pair
    levels = ours.encode(images(), [(SIDE, SIDE)] * 2)
    found = ours.decode_all(torch.zeros(0, 5, DIM), levels, [], min_score=0.5)
    assert found.low_res.shape == (0, CONCEPT.mask_side, CONCEPT.mask_side)
    assert found.presence.shape == (0,)
    assert found.candidates == ()
    assert ours.presence(torch.zeros(0, 5, DIM), levels, []).shape == (0,)


def test_gradients_reach_the_tokens_that_count_and_dropout_is_off_in_training(pair):
    _, ours = pair
    levels = ours.encode(images(), [(SIDE, SIDE)] * 2)
    text = prompts().requires_grad_()
    results = []
    for mode in (True, False):
        ours.train(mode)
        found = ours.decode_all(text, levels, OWNERS)
        [gradient] = torch.autograd.grad(found.low_res.sum() + found.presence.sum(), text)
        results.append((found.low_res, gradient))
    torch.testing.assert_close(results[0], results[1])
    counts = prompts().ne(0).any(-1)
    assert gradient[counts].abs().sum(-1).gt(0).all()
    assert not gradient[~counts].any()
    ours.recomputes = False
    kept = ours.decode_all(text, levels, OWNERS)
    ours.recomputes = True
    [expected] = torch.autograd.grad(kept.low_res.sum() + kept.presence.sum(), text)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5)


def test_the_best_candidates_are_kept_in_order():
    scores = torch.linspace(0, 1, 2 * MAX_INSTANCES)
    masks = torch.zeros(len(scores), 2, 2)
    found = best(scores, masks, 0.2)
    assert len(found.scores) == MAX_INSTANCES
    assert found.scores[0] == 1
    assert torch.equal(found.scores, found.scores.sort(descending=True).values)
    assert len(best(scores, masks, 0.9).scores) == 20


def test_the_published_sizes_are_the_defaults():
    settings = ConceptSettings()
    assert settings.embedding_shapes == ((1024, 72, 72),)
    assert (settings.image_size, settings.mask_side, settings.prompt_embed_dim) == (1008, 288, 256)
    assert ConceptSettings(**settings.to_dict()) == settings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"detr_decoder_config": {"hidden_size": 64}}, "width of the DETR decoder is 64, and must be 256"),
        ({"mask_decoder_config": {"num_upsampling_stages": 1}}, "1 upsampling stages, and there must be 2"),
        ({"detr_decoder_config": {"num_queries": 0}}, "0 queries, and there must be one or more"),
        ({"detr_encoder_config": {"num_attention_heads": 7}}, "7 heads of detr_encoder_config do not divide"),
        ({"vision_config": {"scale_factors": [2.0, 1.0]}}, r"levels of the neck is \[2.0, 1.0\]"),
        ({"vision_config": 3}, "vision_config of sam_config is 3, not an object"),
        ({"pixel_mean": (1.0,)}, r"pixel_mean of sam_config is \[1.0\]; it is three numbers"),
        ({"pixel_std": 5}, "pixel_std of sam_config is 5; it is three numbers"),
        ({"states_per_class": 0}, "states_per_class of sam_config is 0; it is a number from 1 to"),
    ],
)
def test_settings_that_do_not_belong_together_are_said(changes, message):
    with pytest.raises(UserError, match=message):
        ConceptSettings(**changes)


def test_images_of_another_size_are_refused(pair):
    with pytest.raises(ValueError, match=r"images of \(8, 8\) pixels; SAM 3's concept head takes 56 x 56"):
        pair[1].encode(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), [(8, 8)])
