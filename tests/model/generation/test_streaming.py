"""Text comes as it is generated, answers can be stopped, and earlier answers are read again as they were."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from model.errors import UserError
from model.generation.streaming import TextStream
from model.text.conversation import Conversation, Turn
from model.text.encoded import IGNORE_INDEX, encode_conversation
from model.text.generated import encode_as_generated
from model.text.special_tokens import Special
from model.text.templates import PROMPTS
from model.text.tokens import encode_text
from tests.tiny_weights import noise_image

IMAGES = [noise_image(40, 60, seed=1), noise_image(50, 30, seed=2)]
QUESTIONS = [Conversation.of("Where is the dog?"), Conversation.of("What is on the left side of the tree?")]


@pytest.mark.parametrize(
    "pieces",
    [("It is ", Special("[SEG]"), " and ", Special("[SEG]"), ", not ", Special("[NEG]"), "."),
     ("The café: 日本 🐕 [SEG]!",), ("a\nb",), (Special("[SEG]"),)],
)  # fmt: skip
def test_the_parts_of_a_stream_add_up_to_the_text(tiny_model, pieces):
    processor = tiny_model.processor
    ids = [*encode_text(processor.tokenizer, pieces), processor.token_ids.eos]
    stream = TextStream(processor)
    parts = [stream.add(token) for token in ids]
    whole = processor.decode(ids)
    assert "\ufffd" not in "".join(parts)
    parts.append(stream.rest(whole))
    assert "".join(parts) == whole
    assert sum(bool(part) for part in parts) >= min(len(ids) - 3, 1)


def test_tokens_are_told_as_they_come_and_a_row_can_be_stopped(tiny_model):
    told: list[list[int]] = [[], []]

    def on_token(row, token):
        told[row].append(token)
        return row == 0 and len(told[0]) == 3

    free = tiny_model.generate_batch(IMAGES, QUESTIONS, max_new_tokens=7)
    answers = tiny_model.generate_batch(IMAGES, QUESTIONS, max_new_tokens=7, on_token=on_token)
    assert [answer.token_ids for answer in answers] == told
    assert told == [free[0].token_ids[:3], free[1].token_ids]


@pytest.mark.parametrize("prompt", [name for name in PROMPTS if name != "chat_template"])
def test_a_generated_answer_is_read_again_with_its_own_tokens(tiny_model, prompt):
    processor = tiny_model.processor
    eos, seg = processor.token_ids.eos, processor.token_ids.seg
    # Another tokenization than that of the text: letter by letter.
    letters = [token for letter in "dog" for token in encode_text(processor.tokenizer, (letter,))]
    for generated in ([*letters, seg, eos], [*letters, seg]):  # ended by itself, and cut
        turn = processor.said(generated)
        assert turn.token_ids == tuple(generated)
        assert Special("[SEG]") in turn.text
        assert all(piece != processor.tokenizer.eos_token for piece in turn.text)
        conversation = Conversation((Turn("user", ("Where?",)), turn, Turn("user", ("Why?",))))
        encode = partial(encode_conversation, processor.tokenizer, prompt=prompt, num_image_tokens=4)
        encoded = encode_as_generated(encode, conversation)
        asked, same = (
            encode_conversation(
                processor.tokenizer, Conversation.of(*texts), prompt=prompt, num_image_tokens=4
            )
            for texts in (("Where?",), ("Where?", "x", "Why?"))
        )
        begin = len(asked.input_ids)
        assert encoded.input_ids[:begin] == asked.input_ids
        answer = [*letters, seg, eos]
        assert encoded.input_ids[begin : begin + len(answer)] == answer
        after = same.input_ids[same.input_ids.index(eos, begin) + 1 :]
        assert encoded.input_ids[begin + len(answer) :] == after
        learned = [label for label in encoded.labels if label != IGNORE_INDEX]
        assert learned == answer


def test_a_follow_up_sees_the_states_of_the_answer_before(tiny_model):
    """The tokens of question, answer and follow-up are those of one row that was never interrupted."""
    model = tiny_model.double()
    first = model.chat(IMAGES[0], QUESTIONS[0], max_new_tokens=6)
    history = (*QUESTIONS[0].turns, model.processor.said(first.token_ids))
    follow_up = Conversation((*history, Turn("user", ("And the tree?",))))
    ids = model.processor.encode(follow_up).input_ids
    begin = len(model.processor.encode(QUESTIONS[0]).input_ids)
    assert ids[begin : begin + 6] == first.token_ids
    second = model.chat(IMAGES[0], follow_up, max_new_tokens=4)
    assert len(second.token_ids) == 4


def test_an_answer_ends_where_the_context_does_and_a_longer_question_is_refused(tiny_model, monkeypatch):
    length = len(tiny_model.processor.encode(QUESTIONS[0]).input_ids)
    text_config = tiny_model.config.vlm_config.get_text_config()
    monkeypatch.setattr(text_config, "max_position_embeddings", length + 3)
    assert len(tiny_model.chat(IMAGES[0], QUESTIONS[0], max_new_tokens=50).token_ids) == 3
    monkeypatch.setattr(text_config, "max_position_embeddings", length)
    with pytest.raises(
        UserError, match=f"{length} tokens with its image, and the model reads at most {length}"
    ):
        tiny_model.chat(IMAGES[0], QUESTIONS[0])


def test_another_threshold_needs_no_pass_of_the_language_model(tiny_model, monkeypatch):
    names = ["dog", "tree", "pool table", "sky", "road"]
    image = tiny_model.encode(IMAGES[0])
    answer = tiny_model.segment(image, names)
    middle = sorted(answer.probabilities)[2]
    expected = {t: tiny_model.segment(image, names, rethreshold=t) for t in (0.0, middle, 0.5, 1.0)}
    monkeypatch.setattr(type(tiny_model), "language_states", lambda *_: pytest.fail("a pass"))
    for threshold, other in expected.items():
        again = tiny_model.rethreshold(answer, image, threshold)
        assert again.present == other.present
        assert again.probabilities == other.probabilities
        torch.testing.assert_close(again.masks, other.masks)
    assert len(expected[0.0].masks) == 5
    assert tiny_model.rethreshold(answer, image, None).present == answer.present
    with pytest.raises(UserError, match=r"0 to 1, got 1\.5"):
        tiny_model.rethreshold(answer, image, 1.5)
