"""Conversations that share a row give what they give in rows of their own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from transformers.integrations import flex_attention as integration

from model.lora import add_lora, mark_trainable
from model.text.conversation import Conversation
from model.text.encoded import Encoded
from model.text.packing import pack, pack_within, packed_attention, packed_blocks
from model.text.special_tokens import SEG, Special

IMAGES = [np.random.default_rng(k).integers(0, 256, size, dtype=np.uint8) for k, size in
          enumerate([(20, 30, 3), (24, 16, 3)])]  # fmt: skip
PLAIN = Conversation.of("what is the dog doing?", "the dog sleeps", "and the cat?", "it eats.")


def referring(words):
    return Conversation.of(f"segment {words}", ("Sure, it is ", Special(SEG), "."))


FIVE = [
    referring("dog"),
    PLAIN,
    referring("the left red car"),
    referring("a"),
    Conversation.of("what?", "a dog"),
]
WITHOUT_SEG = [
    PLAIN,
    Conversation.of("what is it?", "a dog"),
    PLAIN,
    Conversation.of("is it red?", "it is."),
    PLAIN,
]
CASES = {  # conversations, their images
    "one": (FIVE[:1], [0]),
    "two": (FIVE[:2], [0, 0]),
    "three": (FIVE[1:4], [0, 0, 0]),
    "four": (FIVE[:4], [0, 0, 0, 0]),
    "five and one": ([*FIVE, referring("a red dog")], [0, 0, 0, 0, 0, 1]),
    "images in turns": ([referring("dog"), referring("a"), PLAIN, referring("the red car")], [0, 1, 0, 1]),
    "one without [SEG]": (WITHOUT_SEG[:1], [0]),
    "five without [SEG]": (WITHOUT_SEG, [0, 0, 0, 0, 0]),
    "no mask for two images": (WITHOUT_SEG[:3], [0, 0, 1]),
}


def batch_of(model, case, **packing):
    conversations, owners = CASES[case]
    num_images = 1 + max(owners)
    counts = [sum(c.num_seg for c, o in zip(conversations, owners, strict=True) if o == k) for k in (0, 1)]
    masks = [np.ones((n, *image.shape[:2]), np.uint8) for n, image in zip(counts, IMAGES, strict=True)]
    return model.processor.collate(
        IMAGES[:num_images], conversations, owners, masks=masks[:num_images], **packing
    )


def run(model, case, **packing):
    """Rows, output and gradients of one training step."""
    model.zero_grad()
    batch = batch_of(model, case, **packing)
    output = model(**batch.fields(), return_predictions=True)
    output.loss.backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}
    return list(batch.image_of_row), output, gradients


def assert_the_same(packed, single, gradients, expected):
    for name in ("total", "cross_entropy", "mask_bce", "dice"):
        torch.testing.assert_close(
            getattr(packed.losses, name), getattr(single.losses, name), rtol=1e-5, atol=1e-6
        )
    for mine, alone in zip(packed.masks, single.masks, strict=True):
        torch.testing.assert_close(mine, alone, rtol=1e-5, atol=1e-5)
    for name, gradient in gradients.items():
        scale = max(1.0, float(expected[name].abs().max()))
        torch.testing.assert_close(gradient / scale, expected[name] / scale, rtol=1e-5, atol=1e-5, msg=name)


@pytest.fixture
def training_model(tiny_model):
    tiny_model.vlm = add_lora(tiny_model.vlm, dropout=0.0)
    mark_trainable(tiny_model)
    return tiny_model


@pytest.mark.parametrize("case", CASES)
def test_packed_rows_give_the_same_losses_gradients_and_masks_as_single_rows(training_model, case):
    rows, single, expected = run(training_model, case)
    assert rows == CASES[case][1]
    rows, packed, gradients = run(training_model, case, pack_rows=True)
    assert rows == sorted(set(CASES[case][1]))
    assert_the_same(packed, single, gradients, expected)


@pytest.mark.parametrize("case", ["four", "five and one", "five without [SEG]"])
def test_rows_that_are_too_long_together_are_split_and_give_the_same(training_model, case):
    conversations, owners = CASES[case]
    encoded = [training_model.processor.encode(conversation) for conversation in conversations]
    image = training_model.processor.token_ids.image
    limit = max(  # of any two neighbours
        sum(token != image for token in pack(encoded[k : k + 2], image).input_ids)
        for k in range(len(encoded) - 1)
    )
    _, single, expected = run(training_model, case)
    rows, packed, gradients = run(training_model, case, pack_rows=True, max_length=limit)
    assert len(set(rows)) < len(rows) < len(owners)
    assert_the_same(packed, single, gradients, expected)


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_rows_padded_to_a_multiple_train_the_same(training_model, case, pack):
    _, expected, wanted = run(training_model, case, pack_rows=pack)
    _, output, gradients = run(training_model, case, pack_rows=pack, pad_to_multiple_of=16)
    assert_the_same(output, expected, gradients, wanted)
    few, many = (
        batch_of(training_model, case, pack_rows=pack, **padding)
        for padding in ({}, {"pad_to_multiple_of": 16})
    )
    assert many.input_ids.shape[1] % 16 == 0
    assert 0 <= many.input_ids.shape[1] - few.input_ids.shape[1] < 16
    assert len(many.learned_rows) % 16 == 0
    assert torch.equal(many.learned_rows[: len(few.learned_rows)], few.learned_rows)
    assert many.labels[many.learned_rows, many.learned_columns].ge(0).sum() == len(few.learned_rows)


def test_only_rows_padded_at_the_right_are_made_longer(tiny_model):
    with pytest.raises(ValueError, match="at the right"):
        tiny_model.processor.collate(IMAGES[:1], FIVE[:1], [0], padding_side="left", pad_to_multiple_of=8)


@pytest.mark.parametrize("case", CASES)
def test_eager_attention_trains_packed_rows_as_sdpa_does(training_model, case):
    _, expected, wanted = run(training_model, case, pack_rows=True)
    training_model.backbone.attend_with("eager")
    try:
        _, output, gradients = run(training_model, case, pack_rows=True)
    finally:
        training_model.backbone.attend_with("sdpa")
    assert_the_same(output, expected, gradients, wanted)


@pytest.mark.filterwarnings("ignore:flex_attention called without")
def test_flex_attention_gives_the_packed_states_of_sdpa(tiny_model, monkeypatch):
    """On a CPU it has no backward, and compiling it would take longer than all tests of this file."""
    monkeypatch.setattr(integration, "compile_friendly_flex_attention", plain_flex_attention)
    conversations, owners = CASES["five and one"]
    batch = tiny_model.processor.collate(IMAGES, conversations, owners, pack_rows=True)
    with torch.no_grad():
        expected = tiny_model(**batch.fields())
        tiny_model.backbone.attend_with("flex_attention")
        assert tiny_model.can_pack_rows
        output = tiny_model(**batch.fields())
    seen = batch.attention_mask.bool()
    states = output.last_hidden_state[seen], expected.last_hidden_state[seen]
    torch.testing.assert_close(*states, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(output.masks, expected.masks, rtol=1e-5, atol=1e-5)


def plain_flex_attention(query, key, value, training=False, **options):
    assert isinstance(options["block_mask"], BlockMask)
    return flex_attention(query, key, value, **options)


def test_a_row_holds_as_many_conversations_as_its_limit_allows():
    """A prefix of one text token and two of the image; conversations with 2, 1, 3 and 1 tokens of their own."""
    parts = [[3, 4], [5], [6, 7, 8], [3]]
    encoded = [
        Encoded(input_ids=[1, 9, 9, *own], labels=[-100] * (3 + len(own)), num_image_tokens=2)
        for own in parts
    ]
    counts = {None: [4], 8: [4], 7: [3, 1], 5: [2, 2], 4: [2, 1, 1], 3: [1, 1, 1, 1], 1: [1, 1, 1, 1]}
    for limit, expected in counts.items():
        rows = pack_within(encoded, 9, limit)
        assert [max(row.segment_ids) for row in rows] == expected, limit
        assert [token for row in rows for token in row.input_ids[3:]] == [3, 4, 5, 6, 7, 8, 3]


@pytest.mark.parametrize("length", [100, 300])
def test_flex_attention_s_mask_is_the_same(length):
    segments = torch.randint(-1, 4, (2, length), generator=torch.Generator().manual_seed(0))
    row, query, key = torch.meshgrid(*(torch.arange(n) for n in (2, length, length)), indexing="ij")
    blocks = packed_blocks(segments)
    assert blocks.shape == (2, 1, length, length)
    assert torch.equal(blocks.mask_mod(row, 0, query, key), packed_attention(segments)[:, 0])


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
    assert row.position_ids.tolist() == [[0, 1, 2, 3, 4, 3]]
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
