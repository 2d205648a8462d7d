"""Questions that no model can answer are refused in one line."""

import pytest

from benchmarks import TOY
from model.checkpoints.load import load_model
from model.errors import UserError
from tests.tiny_weights import noise_image


@pytest.fixture(scope="module")
def model():
    return load_model(TOY / "llava", vision_tower=str(TOY / "clip"), sam=str(TOY / "sam2"))[0]


def test_a_question_of_20000_words_is_refused(model):
    with pytest.raises(UserError, match=r"the question has \d\d,\d{3} tokens, of at most 8,192"):
        model.chat(noise_image(), "dog " * 20_000)
    with pytest.raises(UserError, match="tokens, of at most 8,192"):
        model.segment(noise_image(), ["dog", "x" * 100_000])


@pytest.mark.parametrize("text", ["dog \ud83d", "\udcff"])
def test_half_of_a_character_is_refused(model, text):
    with pytest.raises(UserError, match="half of a character"):
        model.chat(noise_image(), text)
    with pytest.raises(UserError, match="half of a character"):
        model.segment(noise_image(), ["dog", text])
