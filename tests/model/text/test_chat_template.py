"""A tokenizer's own template has limits of time and memory, and is rendered once for each sequence of roles."""

import time

import pytest

from benchmarks.attack.texts import TEMPLATE_TEXTS
from model.errors import UserError
from model.text import chat_template
from model.text.conversation import Conversation
from model.text.templates import render
from model.text.tokenizer_files import load_tokenizer

GOOD = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}a: {% endif %}"
)


@pytest.fixture
def tokenizer(llama_tokenizer_folder):
    return load_tokenizer(llama_tokenizer_folder)


@pytest.mark.parametrize("name", TEMPLATE_TEXTS)
def test_a_template_that_attacks_is_one_line(tokenizer, name, tmp_path, monkeypatch):
    monkeypatch.setattr(chat_template, "MAX_SECONDS", 1.0)
    tokenizer.chat_template = TEMPLATE_TEXTS[name].replace("SHELL", f"touch {tmp_path}/executed")
    started = time.monotonic()
    with pytest.raises(UserError, match="the tokenizer's chat template cannot be used"):
        render(tokenizer, Conversation.of("Where?"), "chat_template")
    assert time.monotonic() - started < 10
    assert not (tmp_path / "executed").exists()


def test_a_template_is_rendered_once_for_the_same_roles(tokenizer, monkeypatch):
    tokenizer.chat_template = GOOD
    first = render(tokenizer, Conversation.of("Where?"), "chat_template")
    monkeypatch.setattr("model.text.templates.rendered", lambda *_, **__: pytest.fail("rendered again"))
    second = render(tokenizer, Conversation.of("When?"), "chat_template")
    assert [pieces for pieces, _ in first if pieces != ("Where?",)] == [
        pieces for pieces, _ in second if pieces != ("When?",)
    ]
