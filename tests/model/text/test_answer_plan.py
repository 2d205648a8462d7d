"""The plan of an answer: the tokenized answer, except for its choices."""

from __future__ import annotations

from pathlib import Path

import pytest

from model.text.answer_plan import plan_answer
from model.text.conversation import Conversation
from model.text.encoded import encode_conversation
from model.text.format import SequenceFormat
from model.text.tokenizer_files import load_tokenizer
from model.text.tokens import add_special_tokens, token_ids


@pytest.mark.parametrize("name", ["paper", "release"])
@pytest.mark.parametrize("prompt", ["llava_v1", "llava_llama_2"])
def test_a_plan_with_its_choices_filled_in_is_the_tokenized_answer(
    llama_tokenizer_folder: Path, name: str, prompt: str
):
    format, tokenizer = SequenceFormat.named(name), load_tokenizer(llama_tokenizer_folder)
    add_special_tokens(tokenizer, format)
    ids = token_ids(tokenizer, format)
    classes = ["person", "Crt  Screen", "[SEG]", "chest of drawers", "sky"]
    plan = plan_answer(tokenizer, classes, format, prompt=prompt)
    assert plan.names == tuple(classes)
    for choices in ([True] * 5, [False] * 5, [False, True, True, False, False]):
        answered = Conversation.of(
            format.query(classes), format.answer(list(zip(classes, choices, strict=True)))
        )
        whole = encode_conversation(tokenizer, answered, prompt=prompt, num_image_tokens=3).input_ids
        asked = encode_conversation(tokenizer, answered.prompt, prompt=prompt, num_image_tokens=3).input_ids
        drafted = list(plan.token_ids)
        for position, present in zip(plan.positions, choices, strict=True):
            drafted[position] = ids.seg if present else ids.neg
        assert whole[: len(asked) + len(drafted)] == asked + drafted


def test_a_format_with_free_answers_cannot_be_planned(llama_tokenizer_folder: Path):
    tokenizer = load_tokenizer(llama_tokenizer_folder)
    for format in (SequenceFormat.named("lisa"), SequenceFormat.named("paper", order_following=False)):
        with pytest.raises(ValueError, match="freely"):
            plan_answer(tokenizer, ["dog"], format, prompt="llava_v1")
