from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from model.text.conversation import Conversation, Turn
from model.text.encoded import IGNORE_INDEX, encode_conversation
from model.text.format import SequenceFormat
from model.text.special_tokens import IMAGE, Special, Text
from model.text.templates import PROMPTS
from model.text.tokenizer_files import load_tokenizer
from model.text.tokens import add_special_tokens, decode_text, token_ids

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# As llava-1.5-7b-hf writes it: contents are lists, and nothing ends an answer.
PARTS = (
    "{% for m in messages %}{{ m['role'].upper() + ': ' }}"
    "{% for c in m['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for c in m['content'] | selectattr('type', 'equalto', 'text') %}{{ c['text'] + ' ' }}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
TEMPLATES = {"llava_v1": None, "llava_llama_2": None, "chatml": CHATML, "parts": PARTS}


def squeeze(text: str) -> str:
    return re.sub(r"\s", "", text)


@pytest.fixture(params=["paper", "release"])
def format(request: pytest.FixtureRequest) -> SequenceFormat:
    return SequenceFormat.named(request.param)


@pytest.fixture(params=TEMPLATES)
def prompt_and_tokenizer(
    request: pytest.FixtureRequest, llama_tokenizer_folder: Path, format: SequenceFormat
):
    tokenizer = load_tokenizer(llama_tokenizer_folder)
    if request.param == "chatml":
        tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
    add_special_tokens(tokenizer, format)
    tokenizer.chat_template = TEMPLATES[request.param]
    return (request.param if TEMPLATES[request.param] is None else "chat_template"), tokenizer


def conversations(format: SequenceFormat) -> list[Conversation]:
    seg = Special(format.seg)
    classes = [("person", True), ("crt screen", False), ("dog", True)]
    return [
        Conversation.of(format.query([name for name, _ in classes]), format.answer(classes)),
        Conversation.of("Where is the dog?", ("Sure, it is ", seg, ".")),
        Conversation.of(
            "Where?", (seg,), "And the cat?", ("It is ", seg, " and ", seg), "Why?", "Because it is so."
        ),
        Conversation.of("Write [SEG] <image> </s>\n{x}", "The text is <image>, [SEG] or <ins>. 🙂"),
    ]


def test_labels_are_the_answers_and_their_end_tokens(prompt_and_tokenizer, format):
    prompt, tokenizer = prompt_and_tokenizer
    ends = set(tokenizer.all_special_ids) | {tokenizer.convert_tokens_to_ids("<|im_end|>")}
    for conversation in conversations(format):
        encoded = encode_conversation(tokenizer, conversation, prompt=prompt, num_image_tokens=5)
        labels = [label for label in encoded.labels if label != IGNORE_INDEX]
        assert squeeze(decode_text(tokenizer, labels)) == squeeze("".join(conversation.answers))
        assert sum(label in ends for label in labels) == len(conversation.answers)
        assert all(b in (a, IGNORE_INDEX) for a, b in zip(encoded.input_ids, encoded.labels, strict=True))


def test_there_are_as_many_seg_ids_as_seg_pieces_and_one_image(prompt_and_tokenizer, format):
    prompt, tokenizer = prompt_and_tokenizer
    ids = token_ids(tokenizer, format)
    for conversation in conversations(format):
        encoded = encode_conversation(tokenizer, conversation, prompt=prompt, num_image_tokens=5)
        assert encoded.input_ids.count(ids.seg) == encoded.labels.count(ids.seg) == conversation.num_seg
        assert encoded.input_ids.count(ids.image) == 5
        assert encoded.num_text_tokens == len(encoded.input_ids) - 5
        assert encoded.input_ids[0] == ids.bos
        assert encoded.input_ids.count(ids.bos) == (
            len(conversation.answers) if prompt == "llava_llama_2" else 1
        )


def test_a_prompt_to_generate_from_is_the_beginning_of_the_answered_conversation(
    prompt_and_tokenizer, format
):
    prompt, tokenizer = prompt_and_tokenizer
    for conversation in conversations(format):
        whole = encode_conversation(tokenizer, conversation, prompt=prompt, num_image_tokens=2)
        asked = encode_conversation(tokenizer, conversation.prompt, prompt=prompt, num_image_tokens=2)
        num_asked = len(asked.input_ids)
        assert whole.input_ids[:num_asked] == asked.input_ids
        assert set(asked.labels[-5:]) == {IGNORE_INDEX}


def test_llava_v1_gives_the_ids_and_labels_of_the_released_code(golden_part: Path):
    tokenizer = load_tokenizer(golden_part / "checkpoints" / "lasagna-tiny")
    format = SequenceFormat.named("release")
    add_special_tokens(tokenizer, format)
    image = tokenizer.convert_tokens_to_ids(IMAGE)
    cases = sorted(golden_part.glob("train_*.npz"))
    assert cases
    for path in cases:
        arrays, texts = np.load(path), json.loads(path.with_suffix(".json").read_text())["conversations"]
        for text, ids, labels in zip(texts, arrays["input_ids"], arrays["labels"], strict=True):
            conversation = parse_llava_v1(text)
            encoded = encode_conversation(tokenizer, conversation, prompt="llava_v1", num_image_tokens=1)
            length = len(encoded.input_ids)
            assert [-200 if i == image else i for i in encoded.input_ids] == ids[:length].tolist(), text
            assert encoded.labels == labels[:length].tolist(), text
            assert set(ids[length:].tolist()) <= {0}


def parse_llava_v1(text: str) -> Conversation:
    """The conversation of a written-out prompt of the released code."""
    rounds = [piece for piece in text.split("USER: ", 1)[1].split("</s>") if piece]
    texts: list[Text] = []
    for turn in rounds:
        user, answer = turn.removeprefix("USER: ").split(" ASSISTANT: ")
        texts += [marked(user.removeprefix("<im_start><image><im_end>\n")), marked(answer)]
    return Conversation.of(*texts)


def marked(text: str) -> Text:
    pieces = re.split("(<ins>|<no_ins>|<semantic>|<cat_start>|<cat_end>)", text)
    return tuple(Special(piece) if i % 2 else piece for i, piece in enumerate(pieces) if piece)


def test_turns_must_alternate_and_users_cannot_segment():
    with pytest.raises(ValueError, match="alternate"):
        Conversation((Turn("assistant", "hello"),))
    with pytest.raises(ValueError, match="alternate"):
        Conversation(())
    with pytest.raises(ValueError, match="role"):
        Turn("system", "hello")
    with pytest.raises(ValueError, match="user turn"):
        Turn("user", ("it is ", Special("[SEG]")))


def test_unknown_prompts_and_unusable_chat_templates_are_errors(llama_tokenizer_folder: Path):
    tokenizer = load_tokenizer(llama_tokenizer_folder)
    add_special_tokens(tokenizer, SequenceFormat.named("paper"))
    conversation = Conversation.of("hello")
    with pytest.raises(ValueError, match=", ".join(sorted(PROMPTS))):
        encode_conversation(tokenizer, conversation, prompt="vicuna", num_image_tokens=1)
    with pytest.raises(ValueError, match="llava_v1"):
        encode_conversation(tokenizer, conversation, prompt="chat_template", num_image_tokens=1)
    for template in ("nothing of it", "{{ raise_exception('no') }}"):
        tokenizer.chat_template = template
        with pytest.raises(ValueError, match="llava_v1"):
            encode_conversation(tokenizer, conversation, prompt="chat_template", num_image_tokens=1)
