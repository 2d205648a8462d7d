"""Special tokens: adding them to a tokenizer, looking up their ids, encoding and decoding text that contains them."""

from __future__ import annotations

import json
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from weakref import WeakKeyDictionary

from tokenizers import Encoding, Tokenizer
from transformers import (
    AddedToken,
    PreTrainedTokenizerBase,
)

from model.errors import UserError
from model.text.format import SequenceFormat
from model.text.special_tokens import (
    CAT_END,
    CAT_START,
    CHOICE_TOKENS,
    IM_END,
    IM_START,
    IMAGE,
    NEG,
    SEG,
    SEMANTIC,
    Special,
    Text,
    as_text,
)


@dataclass(frozen=True, kw_only=True)
class TokenIds:
    """Ids of the tokens that the model needs."""

    image: int
    seg: int
    neg: int | None  # None in formats without a token for absent classes
    im_start: int | None  # around LLaVA's image
    im_end: int | None
    pad: int
    bos: int | None
    eos: int  # ends an answer


def wanted_tokens(format: SequenceFormat, *, for_llava: bool = True) -> list[AddedToken]:
    """The special tokens of a format, in the order in which missing ones are appended to the vocabulary.

    Args:
        for_llava: also those of LLaVA's image; other models have tokens of their own for it.
    """

    def token(content: str, *, lstrip: bool = True, rstrip: bool = True) -> AddedToken:
        return AddedToken(content, lstrip=lstrip, rstrip=rstrip, normalized=False, special=True)

    # Tokens of the original code strip white space on both sides. In the paper format they strip only on the left, so
    # that the hidden state that predicts the choice is that of the class name's last token.
    keeps_right = format.name != "paper"
    choices = [token(name, rstrip=keeps_right) for name in (format.seg, format.neg) if name is not None]
    markers = [token(name) for name in (CAT_START, CAT_END, SEMANTIC)] if format.name == "release" else []
    image = [token(IM_START), token(IM_END), token(IMAGE, lstrip=False, rstrip=False)] if for_llava else []
    return [*markers, *choices, *image]


def add_special_tokens(
    tokenizer: PreTrainedTokenizerBase, format: SequenceFormat, *, for_llava: bool = True
) -> None:
    """Append the missing tokens of `format`, LLaVA's `<image>` last. Idempotent.

    Existing tokens keep their id and white-space behaviour, because a trained model relies on both. A tokenizer
    without padding token pads with `<unk>`, or with its end token if it has no `<unk>`.
    """
    present = tokenizer.get_vocab()
    wanted = wanted_tokens(format, for_llava=for_llava)
    missing = [token for token in wanted if token.content not in present]
    if for_llava and IMAGE in present and (missing or present[IMAGE] != len(tokenizer) - 1):
        # The model drops the last row of its logits. The embedding row of <image> is never read (patch features
        # replace it), so <image> can move to a new last row; its old row becomes an unused token.
        _rename_token(tokenizer, IMAGE, f"<unused_{present[IMAGE]}>")
        missing = [token for token in missing if token.content != IMAGE] + wanted[-1:]
    if missing:
        tokenizer.add_tokens(missing, special_tokens=True)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token


def token_ids(
    tokenizer: PreTrainedTokenizerBase,
    format: SequenceFormat,
    image_token: str = IMAGE,
    end_token: str | None = None,
) -> TokenIds:
    """Ids of the special tokens of `format`.

    Args:
        image_token: the one that image features replace; LLaVA's has others around it.
        end_token: the one that ends an answer, if not the tokenizer's end token.

    Raises ValueError when a token is missing or does not encode to exactly its one id.
    """

    vocabulary = tokenizer.get_vocab()

    def single(token: str | None) -> int:
        index = vocabulary.get(token)
        encoded = [] if index is None else encode_text(tokenizer, (Special(token),))
        if index is None or encoded != [index]:
            raise UserError(
                f"special token {token!r} must encode to exactly one id, got {encoded}; call "
                "add_special_tokens first, and check that the tokenizer folder belongs to the weights"
            )
        return index

    return TokenIds(
        image=single(image_token),
        seg=single(format.seg),
        neg=None if format.neg is None else single(format.neg),
        im_start=single(IM_START) if IM_START in vocabulary else None,
        im_end=single(IM_END) if IM_END in vocabulary else None,
        pad=single(tokenizer.pad_token),
        bos=None if tokenizer.bos_token is None else single(tokenizer.bos_token),
        eos=single(end_token or tokenizer.eos_token),
    )


# Unicode noncharacters: reserved for use inside a program, never part of a text.
_OPEN, _CLOSE, _REPLACEMENT = "\ufdd0", "\ufdd1", "\ufffd"
_guarded: WeakKeyDictionary[PreTrainedTokenizerBase, tuple[int, Tokenizer]] = WeakKeyDictionary()


def _guard(token: str) -> str:
    return f"{_OPEN}{token}{_CLOSE}"


def _guarded_backend(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """The tokenizer with every special token renamed to a string that no text contains; same ids, same rules."""
    cached = _guarded.get(tokenizer)
    if cached is not None and cached[0] == len(tokenizer):
        return cached[1]
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    special = {token["content"] for token in state["added_tokens"] if token["special"]}
    for token in state["added_tokens"]:
        if token["special"]:
            token["content"] = _guard(token["content"])
    model = state["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {_guard(word) if word in special else word: i for word, i in model["vocab"].items()}
    else:  # unigram: a list of (piece, score)
        model["vocab"] = [
            [_guard(word) if word in special else word, *rest] for word, *rest in model["vocab"]
        ]
    if model.get("unk_token") in special:
        model["unk_token"] = _guard(model["unk_token"])
    state.update(truncation=None, padding=None, post_processor=None)
    backend = Tokenizer.from_str(json.dumps(state))
    _guarded[tokenizer] = (len(tokenizer), backend)
    return backend


def encode_segments(
    tokenizer: PreTrainedTokenizerBase, segments: Sequence[Text]
) -> tuple[list[int], list[int]]:
    """Encode consecutive segments as one string.

    Returns the ids and, for each, the index of the segment of its last character (white space that a special token
    strips belongs to that token).
    """
    written, ends, length = [], [], 0
    for segment in segments:
        for piece in segment:
            if isinstance(piece, Special):
                text = _guard(piece)
            else:
                text = piece.replace(_OPEN, _REPLACEMENT).replace(_CLOSE, _REPLACEMENT)
            written.append(text)
            length += len(text)
        ends.append(length)
    encoding: Encoding = _guarded_backend(tokenizer).encode("".join(written), add_special_tokens=False)
    owners, owner = [], 0
    for start, end in encoding.offsets:
        while owner + 1 < len(ends) and max(start, end - 1) >= ends[owner]:
            owner += 1
        owners.append(owner)
    return encoding.ids, owners


def encode_text(tokenizer: PreTrainedTokenizerBase, pieces: Text, *, add_bos: bool = False) -> list[int]:
    """Ids of `pieces`: those of the concatenated string, except that plain pieces never give special tokens."""
    ids, _ = encode_segments(tokenizer, [as_text(pieces)])
    if add_bos and tokenizer.bos_token_id is not None:
        ids = [tokenizer.bos_token_id, *ids]
    return ids


def decode_text(
    tokenizer: PreTrainedTokenizerBase, ids: Iterable[int], *, keep: Container[str] = CHOICE_TOKENS
) -> str:
    """Text of `ids`, with the special tokens named in `keep` and without the others.

    The space that `[SEG]` and `[NEG]` strip when they are encoded is restored.
    """
    text, after_choice = "", False
    for piece in decode_pieces(tokenizer, ids):
        if isinstance(piece, Special):
            if piece in keep:
                gap = " " if piece in (SEG, NEG) and text and not text[-1].isspace() else ""
                text, after_choice = text + gap + piece, piece in (SEG, NEG)
            continue
        # Restores the space after a token that stripped it; a full stop or comma needs none.
        text += (" " if after_choice and piece[:1].isalnum() else "") + piece
        after_choice = False
    return text.strip()


def decode_pieces(tokenizer: PreTrainedTokenizerBase, ids: Iterable[int]) -> Text:
    """The text of `ids`, each special token a `Special` piece, so "[SEG]" in ordinary characters stays plain text."""
    special = {
        index: token.content for index, token in tokenizer.added_tokens_decoder.items() if token.special
    }
    pieces: list[str] = []
    for is_special, section in groupby((int(index) for index in ids), special.__contains__):
        if is_special:
            pieces += [Special(special[index]) for index in section]
        else:
            pieces.append(tokenizer.backend_tokenizer.decode(list(section), skip_special_tokens=False))
    return tuple(pieces)


def _rename_token(tokenizer: PreTrainedTokenizerBase, old: str, new: str) -> None:
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    for token in state["added_tokens"]:
        token["content"] = new if token["content"] == old else token["content"]
    if isinstance(state["model"]["vocab"], dict) and old in state["model"]["vocab"]:
        state["model"]["vocab"][new] = state["model"]["vocab"].pop(old)
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(state))
