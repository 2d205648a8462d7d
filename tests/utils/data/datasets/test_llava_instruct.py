import numpy as np
import pytest

from model.text.special_tokens import SEG, Special
from tests.utils.data.layouts import dialogue, write_llava
from utils.data.datasets.llava_instruct import LlavaInstruct
from utils.data.types import UnusableItemError

ENTRIES = [
    dialogue("000000000009.jpg", "What is it?", "A house.", "And its colour?", "Red."),
    dialogue("000000000025.jpg", "Where is the ball?", "On the grass."),
]


def test_training_uses_whole_dialogues_without_masks(tmp_path, recipe):
    write_llava(tmp_path, ENTRIES)
    dataset = LlavaInstruct(tmp_path, "train")
    texts = set()
    for seed in range(10):
        sample = dataset.draw(np.random.default_rng(seed), recipe)
        assert sample.masks.shape == (0, *sample.image.shape[:2])
        (conversation,) = sample.conversations
        texts.add(tuple(str(turn) for turn in conversation.turns))
    assert texts == {
        ("What is it?", "A house.", "And its colour?", "Red."),
        ("Where is the ball?", "On the grass."),
    }


def test_evaluation_gives_one_question_at_a_time(tmp_path):
    write_llava(tmp_path, ENTRIES, "val")
    samples = list(LlavaInstruct(tmp_path, "val"))
    assert [(sample.question, sample.answer) for sample in samples] == [
        ("What is it?", "A house."),
        ("And its colour?", "Red."),
        ("Where is the ball?", "On the grass."),
    ]


def test_text_that_looks_like_a_special_token_stays_text(tmp_path, recipe):
    write_llava(tmp_path, [dialogue("1.jpg", "What is [SEG]?", "A word, like [SEG] or <image>.")])
    sample = LlavaInstruct(tmp_path, "train").draw(np.random.default_rng(0), recipe)
    pieces = [piece for turn in sample.conversations[0].turns for piece in turn.text]
    assert any(SEG in piece for piece in pieces)
    assert not any(isinstance(piece, Special) for piece in pieces)
    assert sample.conversations[0].num_seg == 0


def test_unusable_entries_are_dropped_with_a_reason(tmp_path):
    good = ENTRIES[1]
    odd = dialogue("1.jpg", "Only a question?")
    swapped = {**dialogue("2.jpg", "a", "b"), "conversations": good["conversations"][::-1]}
    mute = dialogue("3.jpg", "Well?", " ")
    no_key = {"id": "4", "image": "4.jpg"}
    write_llava(tmp_path, [good, odd, swapped, mute, no_key, dialogue("5.jpg", "Gone?", "Yes.")])
    (tmp_path / "coco/train2017/5.jpg").unlink()
    dataset = LlavaInstruct(tmp_path, "train")
    assert [item.image for item in dataset.dialogues] == [good["image"]]
    reasons = ["1 turns", "from 'gpt', not from 'human'", "an empty turn", "'conversations'", "no image"]
    for position, (reason, dropped) in enumerate(zip(reasons, dataset.dropped, strict=True), start=1):
        assert reason in dropped
        assert f"entry {position}" in dropped


def test_an_image_that_does_not_decode_is_unusable(tmp_path, recipe):
    write_llava(tmp_path, ENTRIES[:1])
    (tmp_path / "coco/train2017/000000000009.jpg").write_bytes(b"JFIF")
    with pytest.raises(UnusableItemError, match=r"000000000009\.jpg: cannot be decoded"):
        LlavaInstruct(tmp_path, "train").draw(np.random.default_rng(0), recipe)


def test_a_missing_file_is_named(tmp_path):
    write_llava(tmp_path, ENTRIES)
    with pytest.raises(
        FileNotFoundError, match=r"llava_instruct_150k_val\.json.*holds llava_instruct_150k\.json"
    ):
        LlavaInstruct(tmp_path, "val")
