from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from sentencepiece import SentencePieceProcessor
from transformers import AddedToken, AutoTokenizer

from model.text.format import SequenceFormat
from model.text.special_tokens import IM_END, IM_START, IMAGE, NEG, SEG, Special, Text
from model.text.tokenizer_files import load_tokenizer, save_tokenizer
from model.text.tokens import add_special_tokens, decode_text, encode_text, token_ids

FORMATS = ("paper", "release", "lisa")
SPECIAL = re.compile(r"(<im_start>|<im_end>|<image>|<semantic>|<cat_start>|<cat_end>|<ins>|<no_ins>|</s>)")
TEXTS = ("a person", " dog,  cat ", "Schön 🙂 42\n- list", "[SEG] <image> </s> <ins>", "", "<s>", "x [NEG]y")


def marked(text: str) -> Text:
    """A written prompt with its special tokens marked as such."""
    return tuple(Special(piece) if i % 2 else piece for i, piece in enumerate(SPECIAL.split(text)) if piece)


@pytest.fixture(params=FORMATS)
def format(request: pytest.FixtureRequest) -> SequenceFormat:
    return SequenceFormat.named(request.param)


@pytest.fixture
def tokenizer(llama_tokenizer_folder: Path, format: SequenceFormat):
    tokenizer = load_tokenizer(llama_tokenizer_folder)
    add_special_tokens(tokenizer, format)
    return tokenizer


def test_original_tokenizer_gives_the_ids_of_the_released_code(golden_part: Path):
    tokenizer = load_tokenizer(golden_part / "checkpoints" / "lasagna-tiny")
    for case in json.loads((golden_part / "tokenization.json").read_text()):
        before, *after = case["prompt"].split(IMAGE)
        ids = encode_text(tokenizer, marked(before), add_bos=True)
        for text in after:
            ids += [-200, *encode_text(tokenizer, marked(text))]
        assert ids == case["ids"], case["prompt"]


def test_tokens_added_to_the_base_tokenizer_get_the_ids_of_the_released_code(golden_part: Path):
    tokenizer = load_tokenizer(golden_part / "checkpoints" / "llava-tiny-base")
    add_special_tokens(tokenizer, SequenceFormat.named("release"))
    added = json.loads((golden_part / "checkpoints" / "lasagna-tiny" / "added_tokens.json").read_text())
    assert {token: tokenizer.convert_tokens_to_ids(token) for token in added} == added


@pytest.mark.parametrize("legacy", [True, False, None])
def test_plain_text_gets_the_ids_of_sentencepiece(
    llama_tokenizer_folder: Path, tmp_path: Path, legacy: bool | None
):
    for file in llama_tokenizer_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    settings |= {} if legacy is None else {"legacy": legacy}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = load_tokenizer(tmp_path)
    add_special_tokens(tokenizer, SequenceFormat.named("paper"))
    reference = SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    for text in TEXTS:
        # The stock class reads the first space of a text as the one it puts in front anyway.
        text = text.strip() if legacy is False else text
        assert encode_text(tokenizer, (text,)) == reference.encode(text), text
    puts_space_after_special = encode_text(tokenizer, (Special(SEG), "dog"))[1:] == reference.encode("dog")
    assert puts_space_after_special == (legacy is not False)


def test_every_special_token_is_one_id_and_image_is_the_last(tokenizer, format):
    ids = token_ids(tokenizer, format)
    assert ids.image == len(tokenizer) - 1
    assert (ids.bos, ids.eos, ids.pad) == (1, 2, 0)
    assert (ids.neg is None) == (format.neg is None)
    assert tokenizer.padding_side == "right"


def test_adding_special_tokens_twice_changes_nothing(tokenizer, format):
    vocabulary = tokenizer.get_vocab()
    add_special_tokens(tokenizer, format)
    assert tokenizer.get_vocab() == vocabulary


def test_an_image_token_inside_the_vocabulary_moves_to_its_end(llama_tokenizer_folder: Path):
    tokenizer = load_tokenizer(llama_tokenizer_folder)
    old = len(tokenizer)
    tokenizer.add_tokens(
        [AddedToken(IMAGE, special=True), AddedToken("<pad>", special=True)], special_tokens=True
    )
    format = SequenceFormat.named("paper")
    add_special_tokens(tokenizer, format)
    vocabulary = tokenizer.get_vocab()
    assert vocabulary[IMAGE] == len(tokenizer) - 1 == max(vocabulary.values())
    assert vocabulary["<pad>"] == old + 1
    assert sorted(vocabulary.values()) == list(range(len(tokenizer)))
    assert token_ids(tokenizer, format).image == len(tokenizer) - 1
    add_special_tokens(tokenizer, format)
    assert tokenizer.get_vocab() == vocabulary


def test_a_missing_special_token_is_an_error_that_names_it(llama_tokenizer_folder: Path):
    with pytest.raises(ValueError, match=re.escape(IMAGE)):
        token_ids(load_tokenizer(llama_tokenizer_folder), SequenceFormat.named("paper"))


def test_pieces_give_the_ids_of_the_joined_text(tokenizer, format):
    pieces = (
        "Look at ",
        Special(IM_START),
        Special(IMAGE),
        Special(IM_END),
        "\nthe  dog ",
        Special(format.seg),
        ", ok",
    )
    assert encode_text(tokenizer, pieces) == tokenizer.encode("".join(pieces), add_special_tokens=False)
    assert encode_text(tokenizer, pieces, add_bos=True) == tokenizer.encode("".join(pieces))


def test_a_plain_look_alike_of_a_special_token_stays_text(tokenizer, format):
    special = set(tokenizer.added_tokens_decoder)
    for text in (f"say {format.seg} now", "<image>", "a </s> b", "<s>", "<im_start>x<im_end>", "<unk>"):
        ids = encode_text(tokenizer, (text,))
        assert not special & set(ids)
        assert decode_text(tokenizer, ids) == text
    mixed = encode_text(tokenizer, (f"{format.seg} is ", Special(format.seg)))
    assert mixed.count(token_ids(tokenizer, format).seg) == 1


def test_noncharacters_cannot_forge_a_special_token(tokenizer, format):
    ids = encode_text(tokenizer, (f"\ufdd0{format.seg}\ufdd1",))
    assert token_ids(tokenizer, format).seg not in ids


def test_saved_tokenizer_is_the_same_for_auto_tokenizer(tokenizer, format, tmp_path: Path):
    save_tokenizer(tokenizer, tmp_path)
    # A folder of weights also has a config, which AutoTokenizer looks into first.
    for model_type in ("lasagna", "llava", None):
        if model_type:
            (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
        else:
            (tmp_path / "config.json").unlink()
        reloaded = AutoTokenizer.from_pretrained(tmp_path)
        assert reloaded.get_vocab() == tokenizer.get_vocab()
        assert token_ids(reloaded, format) == token_ids(tokenizer, format)
        for text in (*TEXTS, f"a {format.seg}, b{format.seg} c {IMAGE}\nd"):
            assert reloaded(text).input_ids == tokenizer(text).input_ids
            assert encode_text(reloaded, (text,)) == encode_text(tokenizer, (text,))


def test_a_second_save_and_load_changes_nothing(tokenizer, format, tmp_path: Path):
    save_tokenizer(tokenizer, tmp_path / "one")
    save_tokenizer(load_tokenizer(tmp_path / "one"), tmp_path / "two")
    again = load_tokenizer(tmp_path / "two")
    assert token_ids(again, format) == token_ids(tokenizer, format)
    assert [encode_text(again, (text,)) for text in TEXTS] == [
        encode_text(tokenizer, (text,)) for text in TEXTS
    ]


def test_the_space_before_seg_is_swallowed_and_printed_again(llama_tokenizer_folder: Path):
    tokenizer = load_tokenizer(llama_tokenizer_folder)
    add_special_tokens(tokenizer, SequenceFormat.named("paper"))
    pieces = ("a person ", Special(SEG), ", tree ", Special(NEG), " and sky ", Special(SEG), ".")
    ids = encode_text(tokenizer, pieces)
    assert ids == encode_text(
        tokenizer, tuple(p if isinstance(p, Special) else p.rstrip(" ") for p in pieces)
    )
    assert decode_text(tokenizer, [1, *ids, 2]) == "a person [SEG], tree [NEG] and sky [SEG]."


def test_a_folder_without_tokenizer_is_an_error(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_an_added_token_at_another_id_is_an_error(llama_tokenizer_folder: Path, tmp_path: Path):
    for file in llama_tokenizer_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "added_tokens.json").write_text(json.dumps({SEG: 5000}))
    with pytest.raises(ValueError, match="5000"):
        load_tokenizer(tmp_path)
