"""Conversations that share a row give what they give in rows of their own."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from model.conversation import Conversation, Encoded
from model.lora import add_lora, mark_trainable
from model.packing import pack, packed_attention
from model.tokens import SEG, Special

IMAGES = [np.random.default_rng(k).integers(0, 256, size, dtype=np.uint8) for k, size in
          enumerate([(20, 30, 3), (24, 16, 3)])]  # fmt: skip
PLAIN = Conversation.of("what is the dog doing?", "the dog sleeps", "and the cat?", "it eats.")


def referring(words):
    return Conversation.of(f"segment {words}", ("Sure, it is ", Special(SEG), "."))


CASES = {
    "one each": ([referring("dog"), referring("the left red car")], [0, 1]),
    "five and one": (
        [
            referring("dog"),
            PLAIN,
            referring("the left red car"),
            referring("a"),
            PLAIN,
            referring("a red dog"),
        ],
        [0, 0, 0, 0, 0, 1],
    ),
    "images in turns": ([referring("dog"), referring("a"), PLAIN, referring("the red car")], [0, 1, 0, 1]),
    "no mask at all": ([PLAIN, Conversation.of("what is it?", "a dog"), PLAIN], [0, 0, 1]),
}


@pytest.mark.parametrize("case", CASES)
def test_packed_rows_give_the_same_losses_gradients_and_masks_as_single_rows(tiny_model, case):
    conversations, owners = CASES[case]
    tiny_model.vlm = add_lora(tiny_model.vlm, dropout=0.0)
    mark_trainable(tiny_model)
    counts = [sum(c.num_seg for c, o in zip(conversations, owners, strict=True) if o == k) for k in (0, 1)]
    masks = [np.ones((n, *image.shape[:2]), np.uint8) for n, image in zip(counts, IMAGES, strict=True)]

    def run(pack_rows):
        tiny_model.zero_grad()
        batch = tiny_model.processor.collate(IMAGES, conversations, owners, masks=masks, pack_rows=pack_rows)
        output = tiny_model(**batch)
        output.loss.backward()
        gradients = {n: p.grad.clone() for n, p in tiny_model.named_parameters() if p.requires_grad}
        return len(batch["input_ids"]), output, gradients

    num_rows, single, expected = run(False)
    num_packed, packed, gradients = run(True)
    assert (num_rows, num_packed) == (len(conversations), 2)
    for name in ("total", "cross_entropy", "mask_bce", "dice"):
        torch.testing.assert_close(
            getattr(packed.losses, name), getattr(single.losses, name), rtol=1e-5, atol=1e-6
        )
    for mine, alone in zip(packed.masks, single.masks, strict=True):
        torch.testing.assert_close(mine, alone, rtol=1e-5, atol=1e-5)
    for name, gradient in gradients.items():
        scale = max(1.0, float(expected[name].abs().max()))
        torch.testing.assert_close(gradient / scale, expected[name] / scale, rtol=1e-5, atol=1e-5, msg=name)


def test_a_conversation_sees_the_prefix_and_itself():
    sees = packed_attention(torch.tensor([[0, 0, 1, 1, 2, -1]]))[0, 0]
    expected = [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 1, 0],
        [1, 1, 0, 0, 0, 1],
    ]
    assert sees.int().tolist() == expected


def test_positions_restart_after_the_prefix():
    first = Encoded(input_ids=[1, 9, 9, 3, 4], labels=[-100, -100, -100, -100, 4], num_image_tokens=2)
    second = Encoded(input_ids=[1, 9, 9, 5], labels=[-100] * 4, num_image_tokens=2)
    row = pack([first, second], image_id=9)
    assert row.input_ids == [1, 9, 9, 3, 4, 5]
    assert row.position_ids == [0, 1, 2, 3, 4, 3]
    assert row.segment_ids == [0, 0, 0, 1, 1, 2]
    assert row.labels == [-100, -100, -100, -100, 4, -100]


def test_conversations_of_different_beginnings_cannot_share_a_row():
    first = Encoded(input_ids=[1, 9, 3], labels=[-100] * 3, num_image_tokens=1)
    second = Encoded(input_ids=[2, 9, 3], labels=[-100] * 3, num_image_tokens=1)
    with pytest.raises(ValueError, match="must share their text"):
        pack([first, second], image_id=9)


def test_packed_rows_are_refused_where_prompts_are_padded_left(tiny_model):
    with pytest.raises(ValueError, match="padded at the right"):
        tiny_model.processor.collate(IMAGES[:1], [PLAIN], [0], padding_side="left", pack_rows=True)
