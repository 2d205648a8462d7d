"""The reference of the released recipe computes what our model computes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from segment_anything.modeling.image_encoder import Attention

from benchmarks.models import build
from benchmarks.reference_answer import PlainAnswer
from benchmarks.reference_model import PlainModel, plain_batch
from benchmarks.scenes import make_scene

CLASSES = ("person", "tree", "dog", "car", "house")


@pytest.fixture(scope="module")
def built():
    return build("tiny", lora=True)


@pytest.fixture(scope="module")
def batches(built):
    """Ours, packed, and the reference's, of the same conversations: three about one image, two about another."""
    model, processor = built
    # The adapters' second matrices start at zero, where a gradient could not reach the first.
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    scene = make_scene(processor, 2, 3)
    scene.conversations.pop(), scene.owners.pop()
    scene.masks[1] = scene.masks[1][:2]
    arguments = (scene.images, scene.conversations, scene.owners)
    packed, single = (
        processor.collate(*arguments, masks=scene.masks, pack_rows=pack_rows) for pack_rows in (True, False)
    )
    return packed, plain_batch(model, single)


def gradients(model, loss):
    model.zero_grad(set_to_none=True)
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_the_losses_and_gradients_of_the_reference_are_ours(built, batches):
    model, _ = built
    packed, plain = batches
    theirs, ours = PlainModel(model).losses(plain), model(**packed.fields())
    for name in ("total", "cross_entropy", "mask_bce", "dice"):
        torch.testing.assert_close(theirs[name], getattr(ours.losses, name), rtol=1e-4, atol=0)
    expected, found = gradients(model, theirs["total"]), gradients(model, ours.loss)
    assert expected.keys() == found.keys() == {n for n, p in model.named_parameters() if p.requires_grad}
    # A key's bias moves all scores of a query alike: its gradient is zero, and what is there is rounding.
    noise = 1e-6 * max(gradient.norm() for gradient in expected.values())
    for name, gradient in expected.items():
        difference = (gradient - found[name]).norm()
        assert difference <= 1e-4 * gradient.norm() + noise, (name, difference, gradient.norm())


def test_the_reference_reads_every_image_once_a_conversation_and_sam_s_images_one_by_one(built, batches):
    model, _ = built
    reference = PlainModel(model)
    seen: dict[str, list[int]] = {"clip": [], "sam": []}
    hooks = [
        module.register_forward_pre_hook(lambda _, inputs, name=name: seen[name].append(len(inputs[0])))
        for name, module in (
            ("clip", model.base_vlm.model.vision_tower),
            ("sam", reference.sam.image_encoder),
        )
    ]
    reference.losses(batches[1])
    for hook in hooks:
        hook.remove()
    assert seen == {"clip": [5], "sam": [1, 1]}


def test_sam_of_the_reference_is_the_package_s_own_with_our_weights(built, batches):
    model, _ = built
    packed, plain = batches
    reference = PlainModel(model)
    assert all(type(block.attn) is Attention for block in reference.sam.image_encoder.blocks)
    theirs = dict(reference.sam.named_parameters())
    assert all(theirs[name] is parameter for name, parameter in model.sam.named_parameters())
    [ours] = model.sam.encode(packed.sam_images, packed.resized_sizes)
    torch.testing.assert_close(reference.encode(plain.images), ours, rtol=1e-4, atol=1e-4)


def test_both_plain_answers_are_those_of_decoding_in_passes():
    model, processor = build("tiny")
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    plain = PlainAnswer(model, processor, image, CLASSES)
    expected = model.segment(image, CLASSES).present
    slow, cached = plain.without_cache(), plain.with_cache()
    assert slow.present == cached.present == expected
    assert len(slow.states) == len(cached.states) == sum(expected)
    for one, other in zip(slow.states, cached.states, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
    reached = sum(position < 5 for position in plain.plan.positions)
    assert len(plain.with_cache(num_tokens=5).present) == reached
