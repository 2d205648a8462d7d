"""A whole model with a concept head: states of names as prompts, presence, instances."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from model.checkpoints.load import load_model
from model.config import LasagnaConfig
from model.errors import UserError
from model.lora import mark_trainable
from model.outputs import EncodedImages
from model.text.conversation import Conversation
from tests.model.test_lasagna import IMAGES, mixed_batch
from tests.tiny_weights import random_sam3

CLASSES = ["dog", "tree", "chest of drawers", "sky"]


@pytest.fixture(scope="module")
def parts(tiny_folders, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sam3")
    random_sam3().save_pretrained(folder)
    return {"vision_tower": str(tiny_folders.clip), "sam": str(folder)}


@pytest.fixture(scope="module")
def shared(tiny_folders, parts):
    return load_model(tiny_folders.llava, dtype=torch.float32, **parts)[0]


def teacher_forced(model, names, present, **options):
    """The masks of an answer that is given, and the batch."""
    processor = model.processor
    choices = list(zip(names, present, strict=True))
    rows = [Conversation.of(processor.format.query(names), processor.format.answer(choices)) for _ in IMAGES]
    inputs = processor.collate(IMAGES, rows, [0, 1], **options)
    with torch.no_grad():
        return model(**inputs.fields()).masks, inputs


@pytest.mark.parametrize("pack_rows", [False, True])
def test_constrained_answers_have_the_masks_of_the_same_answers_when_they_are_given(shared, pack_rows):
    answers = shared.segment_batch(IMAGES, [CLASSES] * 2, rethreshold=0.0)  # a mask for every class
    decided = [[p >= 0.5 for p in answer.probabilities] for answer in answers]
    for index, present in enumerate(decided):
        expected, inputs = teacher_forced(shared, CLASSES, present, pack_rows=pack_rows)
        chosen = torch.tensor(present)
        torch.testing.assert_close(answers[index].masks[chosen], expected[index], rtol=1e-3, atol=1e-3)
    # A name of several tokens prompts with all of their states.
    lengths = (inputs.seg_columns - inputs.seg_firsts).tolist() + (
        inputs.neg_columns - inputs.neg_firsts
    ).tolist()
    assert max(lengths) > min(lengths)


def test_words_of_a_name_matter_and_not_those_of_other_names(shared):
    with torch.no_grad():
        states = torch.randn(1, shared.sam.states_per_prompt, 32)
        states[:, :-3] = 0
        encoded = EncodedImages.of([shared.encode(IMAGES[0])])
        [mask] = shared.decode_masks([states], encoded, [0])
        changed = states.clone()
        changed[:, -3] += 1
        [other] = shared.decode_masks([changed], encoded, [0])
    assert not torch.allclose(mask, other)


def test_thresholds_afterwards_equal_thresholds_at_once(shared):
    encoded = shared.encode(IMAGES[0])
    answer = shared.segment(encoded, CLASSES, min_score=0.01)
    assert len(answer.presence) == len(CLASSES)
    again = shared.rethreshold(answer, encoded, 0.0, min_score=0.01)
    at_once = shared.segment(encoded, CLASSES, rethreshold=0.0, min_score=0.01)
    assert again.present == [True] * len(CLASSES)
    assert again.presence == pytest.approx(answer.presence, rel=1e-4)
    for one, other in zip(again.instances, at_once.instances, strict=True):
        assert (one.label, one.score) == (other.label, pytest.approx(other.score, abs=1e-4))
    torch.testing.assert_close(again.masks, at_once.masks, rtol=1e-3, atol=1e-3)


def test_instances_are_one_coco_annotation_each_the_best_first(shared):
    answer = shared.segment(IMAGES[0], CLASSES, rethreshold=0.0, min_score=0.01)
    found = answer.found(instances=True)
    assert answer.instance_source == "model"
    assert len(found) == len(answer.instances) > len(CLASSES)
    for name in CLASSES:
        scores = [one.score for one in found if one.label == name]
        assert scores == sorted(scores, reverse=True) != []
    content = answer.to_coco(instances=True)
    assert [entry["score"] for entry in content["annotations"]] == [mask.score for mask in found]
    assert all(mask.pixels.shape == IMAGES[0].shape[:2] for mask in found)
    assert len(answer.to_coco()["annotations"]) == len(CLASSES)
    assert all(mask.area >= 200 for mask in answer.found(instances=True, min_area=200))


def test_a_free_answer_has_the_instances_of_its_masks(shared):
    free = replace(shared.processor.format, order_following=False)
    processor = replace(shared.processor, format=free)
    answers = shared.segment_batch(IMAGES, [CLASSES[:1]] * 2, processor=processor)
    assert all(answer.instances is not None for answer in answers)


def test_presence_is_learned_from_both_choices(tiny_folders, parts):
    model, processor = load_model(tiny_folders.llava, dtype=torch.float32, **parts)
    mark_trainable(model)
    choices = [("dog", False), ("tree", True), ("cat", False), ("sky", False)]
    names = [name for name, _ in choices]
    row = Conversation.of(processor.format.query(names), processor.format.answer(choices))
    masks = [np.ones((1, *IMAGES[0].shape[:2]), np.uint8)]
    batch = processor.collate(IMAGES[:1], [row], [0], masks=masks)
    assert batch.neg_images == (0,)  # as many as there are [SEG]
    losses = model(**batch.fields()).losses
    states = model(**batch.fields()).last_hidden_state
    found = [
        model._of_images(states, *places, owners, 1)
        for places, owners in (
            ((batch.seg_rows, batch.seg_columns, batch.seg_firsts), batch.seg_images),
            ((batch.neg_rows, batch.neg_columns, batch.neg_firsts), batch.neg_images),
        )
    ]
    encoded = EncodedImages.of([model.encode(IMAGES[0])])
    logits = torch.stack([model.decode_presence(group, encoded, [0])[0][0] for group in found])
    expected = F.binary_cross_entropy_with_logits(logits, torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(losses.presence, expected, rtol=1e-4, atol=1e-5)
    total = losses.cross_entropy + losses.mask_bce + losses.dice + losses.presence
    torch.testing.assert_close(losses.total, total)
    model.config.loss_weights["presence"] = 0.0
    assert model(**batch.fields()).losses.presence == 0


def test_the_language_model_learns_through_the_head(tiny_folders, parts):
    model, _ = load_model(tiny_folders.llava, dtype=torch.float32, **parts)
    mark_trainable(model)
    model.config.loss_weights |= {"cross_entropy": 0.0}
    model(**mixed_batch(model).fields()).loss.backward()
    assert model.get_input_embeddings().weight.grad.abs().sum() > 0
    assert model.sam.detr_decoder.presence_head.layer1.weight.grad.abs().sum() > 0
    assert model.sam.detr_encoder.layers[0].mlp.fc1.weight.grad is None


def test_what_does_not_go_with_a_concept_head_is_said(shared):
    with pytest.raises(UserError, match="--spatial_prompt does not go with --mask_head concept"):
        shared.add_spatial_prompt()
    stored = shared.config.to_dict() | {"spatial_prompt": True}
    with pytest.raises(UserError, match="--spatial_prompt does not go with --mask_head concept"):
        LasagnaConfig(**stored)
    assert shared.config.mask_head == "concept"
