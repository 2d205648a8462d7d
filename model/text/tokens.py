"""Special tokens: how they enter a tokenizer, which ids they got, and how text is encoded around them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from weakref import WeakKeyDictionary

from tokenizers import Encoding, Tokenizer, normalizers
from transformers import (
    AddedToken,
    AutoTokenizer,
    LlamaTokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from model.downloads import check_download
from model.errors import UserError
from model.files import read_json
from model.huggingface import from_pretrained
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

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer.model", "added_tokens.json", "tokenizer_config.json", "special_tokens_map.json",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TokenIds:
    """Ids of the tokens that the model itself has to know."""

    image: int
    seg: int
    neg: int | None  # None in formats that cannot say "not in this image"
    im_start: int
    im_end: int
    pad: int
    bos: int | None
    eos: int


def wanted_tokens(format: SequenceFormat) -> list[AddedToken]:
    """The special tokens of a format, in the order in which missing ones are appended to a vocabulary."""

    def token(content: str, *, lstrip: bool = True, rstrip: bool = True) -> AddedToken:
        return AddedToken(content, lstrip=lstrip, rstrip=rstrip, normalized=False, special=True)

    # Tokens of the original code swallow white space on both sides. In the paper format only the space
    # in front goes, so that the state that decides is the last token of the class name.
    keeps_right = format.name != "paper"
    choices = [token(name, rstrip=keeps_right) for name in (format.seg, format.neg) if name is not None]
    markers = [token(name) for name in (CAT_START, CAT_END, SEMANTIC)] if format.name == "release" else []
    return [*markers, *choices, token(IM_START), token(IM_END), token(IMAGE, lstrip=False, rstrip=False)]


def add_special_tokens(tokenizer: PreTrainedTokenizerBase, format: SequenceFormat) -> None:
    """Append the tokens of `format` that are missing, `<image>` last. Idempotent.

    Tokens that are there keep their id and their white-space behaviour: a trained model relies on both.
    A tokenizer without padding token pads with `<unk>`, or with its end token when it has no `<unk>`.
    """
    present = tokenizer.get_vocab()
    wanted = wanted_tokens(format)
    missing = [token for token in wanted if token.content not in present]
    if IMAGE in present and (missing or present[IMAGE] != len(tokenizer) - 1):
        # The model cuts the last row off its logits. The row of <image> is never read (image features
        # take its place), so the token may move to a new one; the old row becomes a token nobody writes.
        _rename_token(tokenizer, IMAGE, f"<unused_{present[IMAGE]}>")
        missing = [token for token in missing if token.content != IMAGE] + wanted[-1:]
    if missing:
        tokenizer.add_tokens(missing, special_tokens=True)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token


def token_ids(tokenizer: PreTrainedTokenizerBase, format: SequenceFormat) -> TokenIds:
    """Ids of the special tokens of `format`.

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
        image=single(IMAGE),
        seg=single(format.seg),
        neg=None if format.neg is None else single(format.neg),
        im_start=single(IM_START),
        im_end=single(IM_END),
        pad=single(tokenizer.pad_token),
        bos=None if tokenizer.bos_token is None else single(tokenizer.bos_token),
        eos=single(tokenizer.eos_token),
    )


# Unicode noncharacters: reserved for use inside a program, never part of a text.
_OPEN, _CLOSE, _REPLACEMENT = "\ufdd0", "\ufdd1", "\ufffd"
_guarded: WeakKeyDictionary[PreTrainedTokenizerBase, tuple[int, Tokenizer]] = WeakKeyDictionary()


def _guard(token: str) -> str:
    return f"{_OPEN}{token}{_CLOSE}"


def _guarded_backend(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """The tokenizer with every special token under a name that no user can type; same ids, same rules."""
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

    Returns the ids and, for each, the index of the segment that its last character comes from (white space
    that a special token swallows belongs to the token).
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
    """Ids of `pieces`: those of the joined string, except that plain pieces never give special tokens."""
    ids, _ = encode_segments(tokenizer, [as_text(pieces)])
    if add_bos and tokenizer.bos_token_id is not None:
        ids = [tokenizer.bos_token_id, *ids]
    return ids


def decode_text(
    tokenizer: PreTrainedTokenizerBase, ids: Iterable[int], *, keep: Container[str] = CHOICE_TOKENS
) -> str:
    """Text of `ids`, with the special tokens named in `keep` and without the others.

    The space that `[SEG]` and `[NEG]` swallow when they are encoded is written again.
    """
    text, after_choice = "", False
    for piece in decode_pieces(tokenizer, ids):
        if isinstance(piece, Special):
            if piece in keep:
                gap = " " if piece in (SEG, NEG) and text and not text[-1].isspace() else ""
                text, after_choice = text + gap + piece, piece in (SEG, NEG)
            continue
        # The space after a token that swallowed it; a full stop or comma follows without one.
        text += (" " if after_choice and piece[:1].isalnum() else "") + piece
        after_choice = False
    return text.strip()


def decode_pieces(tokenizer: PreTrainedTokenizerBase, ids: Iterable[int]) -> Text:
    """The text of `ids`, each special token a piece of its own: "[SEG]" spelled in letters stays letters."""
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


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder, whoever wrote it; pads on the right.

    A folder with `tokenizer.json` (ours, Hugging Face's) is read by the stock classes. One with a sentencepiece
    model only is an original LLaVA, LISA or LaSagnA folder: its tokenizer is rebuilt so that it gives the
    ids of the tokenizer class of that time, which the stock classes no longer do.
    """
    folder = Path(folder)
    files = [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]
    for path in files:
        check_download(path)
    try:
        tokenizer = _load_stored(folder)
    except UserError:
        raise
    except Exception as problem:  # of tokenizers and sentencepiece, which raise it bare for a damaged file
        reason = next(iter(str(problem).strip().splitlines()), type(problem).__name__)
        raise UserError(
            f"{' or '.join(map(str, files))} cannot be read ({reason}); copy or download the tokenizer again"
        ) from problem
    if tokenizer is None:
        raise FileNotFoundError(
            f"{folder} has neither tokenizer.json nor tokenizer.model; pass the folder of a whole model"
        )
    tokenizer.padding_side = "right"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    return tokenizer


def _load_stored(folder: Path) -> PreTrainedTokenizerBase | None:
    """The tokenizer of a folder; None where there is none."""
    if (folder / "tokenizer.json").is_file():
        # AutoTokenizer reads config.json first, and warns unless the type "lasagna" is registered by then.
        is_ours = read_json(folder / "config.json").get("model_type") == "lasagna"
        return from_pretrained(PreTrainedTokenizerFast if is_ours else AutoTokenizer, folder)
    return _load_original(folder) if (folder / "tokenizer.model").is_file() else None


def _load_original(folder: Path) -> PreTrainedTokenizerBase:
    """A sentencepiece LLaMA tokenizer as transformers 4.31 had it.

    "Legacy" there meant: every stretch of text between special tokens is tokenized as a text of its own,
    with a space put in front. Its added tokens swallowed the white space on both sides.
    """
    tokenizer = from_pretrained(LlamaTokenizer, folder)
    if read_json(folder / "tokenizer_config.json").get("legacy", True) is not False:
        backend = tokenizer.backend_tokenizer
        backend.pre_tokenizer = None
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    added = read_json(folder / "added_tokens.json")
    for content, index in sorted(added.items(), key=lambda item: item[1]):
        token = AddedToken(content, lstrip=True, rstrip=True, normalized=False, special=True)
        tokenizer.add_tokens([token], special_tokens=True)
        if tokenizer.convert_tokens_to_ids(content) != index:
            raise UserError(
                f"{folder}/added_tokens.json gives {content!r} the id {index}, but the vocabulary puts it at "
                f"{tokenizer.convert_tokens_to_ids(content)}; is tokenizer.model the one of these weights?"
            )
    return tokenizer


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: str | Path) -> None:
    """Write the tokenizer so that `AutoTokenizer.from_pretrained(folder)` gives the same ids."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    # Not read again, but kept: an export for other tools needs it.
    sentencepiece = Path(getattr(tokenizer, "vocab_file", None) or "")
    if sentencepiece.is_file() and not (folder / "tokenizer.model").exists():
        shutil.copyfile(sentencepiece, folder / "tokenizer.model")
    path = folder / "tokenizer_config.json"
    settings = read_json(path)
    # The LLaMA class builds its own pre-tokenizer on load and ignores the one in tokenizer.json.
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    for stale in ("legacy", "vocab_file", "add_prefix_space", "name_or_path", "is_local", "local_files_only"):
        settings.pop(stale, None)
    path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _rename_token(tokenizer: PreTrainedTokenizerBase, old: str, new: str) -> None:
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    for token in state["added_tokens"]:
        token["content"] = new if token["content"] == old else token["content"]
    if isinstance(state["model"]["vocab"], dict) and old in state["model"]["vocab"]:
        state["model"]["vocab"][new] = state["model"]["vocab"].pop(old)
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(state))
